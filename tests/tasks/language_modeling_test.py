"""What every language-modelling task keeps, whatever its source."""

import gzip
import json

import gin
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import seqio
import tensorflow as tf

from selective_t5x.errors import UserError
from selective_t5x.tasks import language_modeling, vocabularies
from tests.support import smoke
from tests.tasks import pipelines
from tests.tasks.pipelines import documents

TASKS = ['wikipedia_sample_lm', 'c4_json_lm', 'text_files_lm']
LENGTH = 512


@pytest.fixture(scope='session')
def corpora(tmp_path_factory):
  """Made-up documents, as C4's shards and as plain text."""
  folder = tmp_path_factory.mktemp('corpora')
  random = np.random.RandomState(0)

  def document():
    count = random.randint(1, 400)
    return ' '.join(f'word{n}' for n in random.randint(0, 1000, count))

  for shard in range(3):
    lines = [json.dumps({'text': document(), 'url': '/'}) for _ in range(60)]
    path = folder / f'c4-train.0000{shard}-of-00003.json.gz'
    with gzip.open(path, 'wt') as file:
      file.write('\n'.join(lines))
    text = '\n\n'.join(document() for _ in range(60))
    (folder / f'{shard}.txt').write_text(text)
  return folder


@pytest.fixture(autouse=True)
def bindings(corpora):
  gin.parse_config(f"""
    vocabularies.Choice.kind = 'bytes'
    c4_json.Files.folder = '{corpora}'
    c4_json.Files.held_out = 0.1
    text_files.Files.train = '{corpora}/*.txt'
    text_files.Files.held_out = 0.1
  """)


@pytest.mark.parametrize('task', TASKS)
def test_splits_share_no_document(task):
  train, validation = documents(task, 'train'), documents(task, 'validation')
  assert train and validation
  assert not set(train) & set(validation)
  share = len(validation) / len(train + validation)
  assert 0.03 < share < 0.2


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('split', ['train', 'validation'])
def test_an_epoch_holds_every_document_whole(task, split):
  """Decoded in turn, the chunks of an epoch give the documents back."""
  dataset = seqio.get_mixture_or_task(task).get_dataset(
    {'targets': LENGTH}, split=split, shuffle=False
  )
  chunks = [x['targets'] for x in dataset.as_numpy_iterator()]
  assert max(map(len, chunks)) == LENGTH
  tokens = np.concatenate(chunks)
  vocabulary = seqio.ByteVocabulary()
  texts, start = [], 0
  for end in np.flatnonzero(tokens == 1):
    texts.append(vocabulary.decode(tokens[start:end].tolist()))
    start = end + 1
  assert start == len(tokens)
  assert texts == documents(task, split)


@pytest.mark.parametrize('task', smoke.first(TASKS))
def test_packed_rows_hold_the_same_tokens(task):
  def count(pack):
    ds = pipelines.dataset(
      task,
      {'targets': LENGTH},
      split='validation',
      num_epochs=1,
      pack=pack,
      batch_size=1,
    )
    rows = [b['decoder_target_tokens'] for b in ds.as_numpy_iterator()]
    return np.bincount(np.concatenate(rows).ravel(), minlength=259)[1:]

  np.testing.assert_array_equal(count(True), count(False))


@pytest.mark.parametrize('task', smoke.first(TASKS))
def test_the_seed_decides_the_order(task):
  def first(seed):
    ds = pipelines.dataset(task, {'targets': LENGTH}, seed=seed)
    return pipelines.batches(ds, 5)

  pipelines.assert_equal(first(3), first(3))
  with pytest.raises(AssertionError):
    pipelines.assert_equal(first(3), first(4))


@pytest.mark.parametrize('task', smoke.first(TASKS))
def test_a_saved_iterator_goes_on_exactly(task, tmp_path):
  pipelines.assert_iterator_resumes(
    lambda: pipelines.dataset(task, {'targets': LENGTH}), tmp_path
  )


def test_a_saved_iterator_goes_on_exactly_in_a_later_epoch(tmp_path):
  gin.bind_parameter('vocabularies.Choice.kind', 'sentencepiece')
  gin.bind_parameter('vocabularies.Choice.size', 300)
  pipelines.assert_iterator_resumes(
    lambda: pipelines.dataset('text_files_lm', {'targets': LENGTH}),
    tmp_path,
    before=200,
    after=200,
  )


def test_rows_start_at_zero_and_segments_are_short_enough():
  ds = pipelines.dataset('c4_json_lm', {'targets': LENGTH})
  for batch in pipelines.batches(ds, 20):
    starts = batch['decoder_positions'] == 0
    assert (batch['decoder_input_tokens'][starts] == 0).all()
    real = batch['decoder_target_tokens'] > 0
    np.testing.assert_array_equal(batch['decoder_segment_ids'] > 0, real)
    np.testing.assert_array_equal(batch['decoder_loss_weights'] > 0, real)


def test_hosts_share_the_documents():
  def texts(index, num_shards):
    task = seqio.get_mixture_or_task('text_files_lm')
    ds = task.get_dataset(
      {'targets': 10**6},
      split='train',
      shuffle=False,
      shard_info=seqio.ShardInfo(index, num_shards),
    )
    return [x['targets'].tobytes() for x in ds.as_numpy_iterator()]

  whole = texts(0, 1)
  for num_shards in (3, 5):  # as many as files; more than files
    parts = [texts(i, num_shards) for i in range(num_shards)]
    assert all(parts)
    assert sorted(sum(parts, [])) == sorted(whole)


@pytest.fixture
def offline_cache(tmp_path):
  """text_files_lm in seqio's offline cache, as seqio_cache_tasks writes it."""
  task = seqio.TaskRegistry.get('text_files_lm')
  folder = tmp_path / 'text_files_lm'
  folder.mkdir()
  documents = task.source.get_dataset('train', shuffle=False)
  documents = list(task.preprocess_precache(documents).as_numpy_iterator())
  with tf.io.TFRecordWriter(str(folder / 'train.tfrecord-00000-of-1')) as file:
    for document in documents:
      file.write(seqio.dict_to_tfexample(document).SerializeToString())
  info = {
    'num_shards': 1,
    'seqio_version': seqio.__version__,
    'features': {
      name: {'shape': [None] * np.ndim(value), 'dtype': 'int32'}
      for name, value in documents[0].items()
    },
  }
  (folder / 'info.train.json').write_text(json.dumps(info))
  (folder / 'stats.train.json').write_text(
    json.dumps({'examples': len(documents)})
  )
  (folder / 'COMPLETED').touch()
  before = seqio.get_global_cache_dirs()
  seqio.set_global_cache_dirs([str(tmp_path)])
  yield
  seqio.set_global_cache_dirs(before)
  task._cache_dir = None


def test_seqios_offline_cache_gives_the_same_chunks(offline_cache, tmp_path):
  task = seqio.TaskRegistry.get('text_files_lm')

  def chunks(use_cached):
    return list(
      task.get_dataset(
        {'targets': LENGTH}, use_cached=use_cached, shuffle=False
      ).as_numpy_iterator()
    )

  pipelines.assert_equal(chunks(True), chunks(False))
  pipelines.assert_iterator_resumes(
    lambda: pipelines.dataset(
      'text_files_lm', {'targets': LENGTH}, use_cached=True
    ),
    tmp_path,
  )


@hypothesis.settings(deadline=None, max_examples=15)
@hypothesis.given(
  st.lists(st.lists(st.integers(1, 300), max_size=50), min_size=1),
  st.integers(1, 20),
)
def test_chunks_lose_no_token(tokens, length):
  ragged = tf.ragged.constant(tokens, dtype=tf.int32, ragged_rank=1)
  dataset = tf.data.Dataset.from_tensor_slices({'targets': ragged})
  dataset = dataset.map(
    lambda x: {'targets': x['targets'][:], 'source_bytes': 1_000_003}
  )
  examples = list(
    language_modeling.chunk(dataset, {'targets': length}).as_numpy_iterator()
  )
  chunks = [x['targets'].tolist() for x in examples]
  assert sum(chunks, []) == sum(tokens, [])
  assert all(0 < len(chunk) <= length for chunk in chunks)
  short = sum(len(chunk) < length for chunk in chunks)
  assert short <= len(tokens)  # only the last chunk of each
  # The documents' bytes are all there, however they are cut.
  not_empty = sum(map(bool, tokens))
  assert sum(int(x['source_bytes']) for x in examples) == 1_000_003 * not_empty


@pytest.mark.parametrize('lengths', [{'inputs': 8}, {'targets': 0}])
def test_lengths_that_are_none(lengths):
  with pytest.raises(UserError, match="needs {'targets'"):
    pipelines.dataset('text_files_lm', lengths)


def test_a_task_of_ones_own():
  source = seqio.FunctionDataSource(
    lambda split, shuffle_files, seed=0: tf.data.Dataset.from_tensors(
      {'text': 'my own text'}
    ),
    splits=['train'],
  )
  task = language_modeling.register('my_own_lm', source)
  try:
    (example,) = task.get_dataset({'targets': 64}).as_numpy_iterator()
    vocabulary = vocabularies.task_vocabulary('my_own_lm')
    assert vocabulary.decode(example['targets'].tolist()) == 'my own text'
    assert example['targets'][-1] == 1
  finally:
    seqio.TaskRegistry.remove('my_own_lm')
