"""Span corruption: T5's own examples, and no text lost."""

import functools

import gin
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import seqio
import tensorflow as tf
from t5.data import preprocessors

from selective_t5x.errors import UserError
from selective_t5x.tasks import objectives, span_corruption
from tests.tasks import pipelines

TASK = 'text_files_span_corruption'
LENGTHS = {'inputs': 64, 'targets': 32}
EOS = 1


@pytest.fixture(autouse=True)
def text(tmp_path):
  random = np.random.RandomState(0)
  documents = [
    ' '.join(f'word{n}' for n in random.randint(0, 1000, size))
    for size in random.randint(1, 150, 300)
  ]
  path = tmp_path / 'a.txt'
  path.write_text('\n'.join(documents))
  gin.parse_config(f"""
    text_files.Files.train = '{path}'
    text_files.Files.validation = '{path}'
    text_files.Files.document = 'line'
    vocabularies.Choice.kind = 'bytes'
  """)
  return ''.join(documents)


def examples(lengths, seed=0, split='train', task=TASK):
  task = seqio.get_mixture_or_task(task)
  dataset = task.get_dataset(lengths, split, seed=seed, shuffle=False)
  return list(dataset.as_numpy_iterator())


def merge(example, first_sentinel):
  """Returns the tokens of the text: sentinels replaced by what they hide."""
  assert example['inputs'][-1] == example['targets'][-1] == EOS
  hidden, merged = {}, []
  for token in example['targets'][:-1]:
    if token >= first_sentinel:
      hidden[token] = []
      last = token
    else:
      hidden[last].append(token)
  for token in example['inputs'][:-1]:
    merged += hidden.pop(token) if token >= first_sentinel else [token]
  # A piece of one token is kept, and its targets are a sentinel of nothing.
  assert not any(hidden.values())
  return merged


def test_an_example_by_hand(monkeypatch):
  #             0  1  2  3  4  5  6  7  8  9
  noise = np.array([0, 0, 1, 1, 0, 0, 0, 1, 0, 1], bool)
  monkeypatch.setattr(
    preprocessors, 'random_spans_noise_mask', lambda *_, **__: noise
  )
  feature = seqio.Feature(seqio.ByteVocabulary(100))  # 259 ids and 100 more
  features = {'inputs': feature, 'targets': feature}
  gin.parse_config('span_corruption.Corruption.noise_density = 0.4')
  gin.parse_config('span_corruption.Corruption.mean_noise_span_length = 1.5')
  dataset = tf.data.Dataset.from_tensors({'targets': tf.range(10, 20)})
  with seqio.map_seed_manager(0):
    # 6 tokens kept, 3 sentinels and the end; 4 replaced, 3 and the end.
    lengths = {'inputs': 10, 'targets': 8}
    dataset = span_corruption.corrupt(dataset, lengths, features)
    dataset = seqio.preprocessors.append_eos_after_trim(
      dataset, features, lengths
    )
  (example,) = dataset.as_numpy_iterator()
  assert example['inputs'].tolist() == [
    10, 11, 358, 14, 15, 16, 357, 18, 356, 1,
  ]  # fmt: skip
  assert example['targets'].tolist() == [358, 12, 13, 357, 17, 356, 19, 1]


def test_examples_are_those_of_the_t5_package():
  """As its task c4_v220_span_corruption makes them, of the same seeds."""
  ours = seqio.TaskRegistry.get(TASK)
  theirs = seqio.Task(
    'theirs',
    source=ours.source,
    preprocessors=[
      functools.partial(
        seqio.preprocessors.rekey, key_map={'inputs': None, 'targets': 'text'}
      ),
      seqio.preprocessors.tokenize,
      seqio.CacheDatasetPlaceholder(),
      preprocessors.span_corruption,
      seqio.preprocessors.append_eos_after_trim,
    ],
    output_features=ours.output_features,
  )

  def first(task, seed):
    dataset = task.get_dataset(LENGTHS, seed=seed, shuffle=False)
    return [
      {name: example[name] for name in LENGTHS}
      for example in dataset.take(50).as_numpy_iterator()
    ]

  # seqio adds 42 for each preprocessor before the cache: theirs has one more.
  pipelines.assert_equal(first(ours, 42), first(theirs, 0))


# Few examples of many documents: each traces the pipeline anew.
@hypothesis.settings(deadline=None, max_examples=10)
@hypothesis.given(
  inputs=st.integers(8, 200),
  density=st.floats(0.02, 0.6),
  span=st.floats(1.0, 12.0),
  sizes=st.lists(st.integers(1, 300), min_size=1, max_size=12),
)
def test_no_text_is_lost(inputs, density, span, sizes):
  """Merged, the examples give all of the text, in order."""
  gin.clear_config()
  gin.parse_config(f"""
    span_corruption.Corruption.noise_density = {density}
    span_corruption.Corruption.mean_noise_span_length = {span}
  """)
  tokens = 3 + np.arange(sum(sizes), dtype=np.int32) % 256
  documents = tf.ragged.constant(np.split(tokens, np.cumsum(sizes)[:-1]))
  dataset = tf.data.Dataset.from_tensor_slices(documents)
  dataset = dataset.map(lambda x: {'targets': tf.cast(x[:], tf.int32)})
  feature = seqio.Feature(seqio.ByteVocabulary(100))
  features = {'inputs': feature, 'targets': feature}
  lengths = {'inputs': inputs, 'targets': 2 * inputs}
  try:
    with seqio.map_seed_manager(0):
      dataset = span_corruption.corrupt(dataset, lengths, features)
      dataset = seqio.preprocessors.append_eos_after_trim(
        dataset, features, lengths
      )
  except UserError:
    hypothesis.reject()
  merged = []
  for example in dataset.as_numpy_iterator():
    merged += merge(example, first_sentinel=259)
  assert merged == tokens.tolist()


def test_every_example_decodes_to_a_piece_of_the_text(text):
  vocabulary = seqio.ByteVocabulary()
  pieces = [
    vocabulary.decode([int(t) for t in merge(example, 259)])
    for example in examples(LENGTHS)
  ]
  assert ''.join(pieces) == text


def test_documents_longer_than_t5_takes_whole(tmp_path):
  text = ''.join(f'{i} ' for i in range(20_000))
  assert len(text) > 65536
  (tmp_path / 'a.txt').write_text(text)
  lengths = {'inputs': 512, 'targets': 114}
  merged = []
  for example in examples(lengths):
    merged += merge(example, 259)
  assert seqio.ByteVocabulary().decode([int(t) for t in merged]) == text


def test_rows_are_full_at_the_lengths_of_t5():
  corruption = span_corruption.Corruption()
  assert corruption.text_length(512) == 568
  lengths = {'inputs': 512, 'targets': 114}
  result = examples(lengths)
  full = [
    all(len(example[name]) == length for name, length in lengths.items())
    for example in result
  ]
  # 300 documents, 128 of them joined at a time: three last rows.
  assert sum(full) >= len(result) - 3 > 50


def test_sentinels_are_the_last_ids_of_the_vocabulary():
  gin.bind_parameter('vocabularies.Choice.kind', 'sentencepiece')
  gin.bind_parameter('vocabularies.Choice.size', 400)
  vocabulary = seqio.TaskRegistry.get(TASK).output_features['inputs'].vocabulary
  assert vocabulary.vocab_size == 500
  for example in examples(LENGTHS)[:20]:
    sentinels = example['inputs'][example['inputs'] >= 400]
    np.testing.assert_array_equal(sentinels, 499 - np.arange(len(sentinels)))


def test_the_seed_decides_the_corruption():
  pipelines.assert_equal(examples(LENGTHS, seed=3), examples(LENGTHS, seed=3))
  with pytest.raises(AssertionError):
    pipelines.assert_equal(examples(LENGTHS, seed=3), examples(LENGTHS, seed=4))


def test_every_epoch_is_corrupted_anew(tmp_path):
  (tmp_path / 'a.txt').write_text('x' * 60)
  ds = seqio.TaskRegistry.get(TASK).get_dataset(
    {'inputs': 64, 'targets': 32}, seed=0, shuffle=False, num_epochs=4
  )
  # The same 128 documents are joined, so an epoch has no end of its own.
  inputs = {x['inputs'].tobytes() for x in ds.as_numpy_iterator()}
  assert len(inputs) == len(list(ds.as_numpy_iterator())) > 3


@pytest.mark.parametrize('objective', ['span_corruption', 'prefix_lm'])
def test_a_saved_iterator_goes_on_exactly(tmp_path, objective):
  pipelines.assert_iterator_resumes(
    lambda: pipelines.dataset(
      f'text_files_{objective}', {'inputs': 64, 'targets': 64}
    ),
    tmp_path,
  )


@pytest.mark.parametrize(
  'lengths, bindings, reason',
  [
    (
      {'inputs': 512, 'targets': 113},
      {},
      r"\['targets'\] is 113: .*'targets': 114",
    ),
    ({'inputs': 2, 'targets': 9}, {}, r"\['inputs'\] is 2: .*'inputs': 3"),
    ({'targets': 512}, {}, "needs the lengths of 'inputs' and 'targets'"),
    (
      {'inputs': 4096, 'targets': 4096},
      {},
      'its 227 spans are more than the 100 sentinels',
    ),
    (
      {'inputs': 64, 'targets': 64},
      {'noise_density': 0.9},
      'more spans than tokens',
    ),
  ],
)
def test_lengths_that_do_not_fit(lengths, bindings, reason):
  for name, value in bindings.items():
    gin.parse_config(f'span_corruption.Corruption.{name} = {value}')
  with pytest.raises(UserError, match=reason):
    examples(lengths)


@pytest.mark.parametrize(
  'binding, reason',
  [
    ('noise_density = 0', 'between 0 and 1'),
    ("noise_density = '0.15'", 'between 0 and 1'),
    ('noise_density = 15', 'between 0 and 1'),
    ('mean_noise_span_length = 0.5', 'of 1 or more'),
  ],
)
def test_corruption_that_is_none(binding, reason):
  gin.parse_config(f'span_corruption.Corruption.{binding}')
  with pytest.raises(UserError, match=reason):
    examples(LENGTHS)


def test_every_corpus_has_both_objectives():
  for corpus in objectives.corpora():
    for objective in ('span_corruption', 'prefix_lm'):
      task = seqio.TaskRegistry.get(f'{corpus}_{objective}')
      assert task.source is objectives.corpora()[corpus]
