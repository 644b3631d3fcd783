"""Perplexity and bits per byte, by hand and through seqio's Evaluator."""

import math

import gin
import numpy as np
import pytest
import seqio

from selective_t5x.tasks import perplexity

TEXTS = [
  'Käse, bread and butter.',
  'Short.',
  'the better butter and the best bread ' * 6,
]


@pytest.fixture(autouse=True)
def text(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('\n'.join(TEXTS))
  gin.parse_config(f"""
    text_files.Files.train = '{path}'
    text_files.Files.validation = '{path}'
    text_files.Files.document = 'line'
    vocabularies.Choice.kind = 'bytes'
  """)


def use_pieces():
  gin.bind_parameter('vocabularies.Choice.kind', 'sentencepiece')
  gin.bind_parameter('vocabularies.Choice.size', 280)


def evaluate(score, length=16, aux=False):
  """Evaluates text_files_lm; score: model features -> nats of an example."""
  evaluator = seqio.Evaluator(
    'text_files_lm',
    seqio.DecoderFeatureConverter(pack=False),
    sequence_length={'targets': length},
  )

  def score_fn(dataset, **_):
    scores = [(int(i), score(x)) for i, x in dataset.as_numpy_iterator()]
    scores = scores[::-1]  # the Evaluator puts them in order
    if aux:
      return scores, {'is_argmax': [True] * len(scores)}
    return scores

  future, _ = evaluator.evaluate(compute_metrics=True, score_fn=score_fn)
  return future.result()['text_files_lm']


def uniform(size):
  return lambda x: -math.log(size) * np.sum(x['decoder_loss_weights'])


@pytest.mark.parametrize('aux', [False, True])
def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(aux):
  values = evaluate(uniform(259), aux=aux)
  assert values['perplexity'] == pytest.approx(259, rel=1e-6)
  assert values['loss_per_token'] == pytest.approx(math.log(259), rel=1e-6)
  # One token a byte, and one end for each document.
  num_bytes = sum(len(text.encode()) for text in TEXTS)
  expected = math.log2(259) * (num_bytes + len(TEXTS)) / num_bytes
  assert values['bits_per_byte'] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('length', [1, 7, 16, 1000])
def test_documents_count_once_however_they_are_cut(length):
  whole = evaluate(uniform(259), length=1000)
  assert evaluate(uniform(259), length=length) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize('length', [16, 1000])
def test_bits_per_byte_are_those_of_the_text_not_of_the_vocabulary(length):
  total = -123.0
  values = []
  for bind in (lambda: None, use_pieces):
    bind()
    task = seqio.TaskRegistry.get('text_files_lm')
    examples = task.get_dataset({'targets': length}, 'validation')
    count = len(list(examples.as_numpy_iterator()))
    values.append(
      evaluate(lambda x, n=count: np.float32(total / n), length=length)
    )
  of_bytes, of_pieces = values
  num_bytes = sum(len(text.encode()) for text in TEXTS)
  expected = pytest.approx(-total / math.log(2) / num_bytes, rel=1e-5)
  assert of_bytes['bits_per_byte'] == expected
  assert of_pieces['bits_per_byte'] == expected
  assert of_bytes['perplexity'] < of_pieces['perplexity']


def test_parts_of_a_split_merge():
  inputs = [
    {'targets': [5, 6, 1], 'source_bytes': 4},
    {'targets': [7], 'source_bytes': 3},
    {'targets': [8, 9], 'source_bytes': 1},
  ]
  scores = np.array([-1.0, -2.0, -4.0], np.float32)

  def metric(part, **kwargs):
    return perplexity.Perplexity.from_model_output(
      inputs[part], scores[part], {}, **kwargs
    )

  whole = metric(slice(None)).compute()
  assert whole['loss_per_token'] == pytest.approx(7 / 6)
  assert whole['bits_per_byte'] == pytest.approx(7 / math.log(2) / 8)
  parts = metric(slice(2)).merge(metric(slice(2, 3)))
  assert parts.merge(perplexity.Perplexity.empty()).compute() == whole
  masked = metric(slice(None), mask=np.array([True, False, True]))
  assert masked.compute()['loss_per_token'] == pytest.approx(5 / 5)


def test_bits_per_byte_only_where_the_bytes_are_known():
  metric = perplexity.Perplexity.from_model_output(
    [{'targets': [5, 1]}], np.array([-2.0]), {}
  )
  values = metric.merge(perplexity.Perplexity.empty()).compute()
  assert values == {
    'loss_per_token': 1.0,
    'perplexity': pytest.approx(math.e),
  }


def test_the_perplexity_of_no_token_is_not_defined():
  nothing = perplexity.Perplexity.empty()
  of_empty_targets = perplexity.Perplexity.from_model_output(
    [{'targets': [], 'source_bytes': 0}], np.array([0.0]), {}
  )
  for metric in (nothing, nothing.merge(nothing), of_empty_targets):
    values = metric.compute()
    assert sorted(values) == ['loss_per_token', 'perplexity']
    assert all(map(math.isnan, values.values()))


@pytest.mark.parametrize('pack', [True, False])
def test_the_model_gets_the_same_features_with_the_bytes_as_without(pack):
  task = seqio.TaskRegistry.get('text_files_lm')
  lengths = {'targets': 16}
  convert = seqio.DecoderFeatureConverter(pack=pack)
  with_bytes = task.get_dataset(lengths, shuffle=False)
  without = with_bytes.map(lambda x: {'targets': x['targets']})
  batches = [
    list(convert(ds, lengths).as_numpy_iterator())
    for ds in (with_bytes, without)
  ]
  assert len(batches[0]) == len(batches[1]) > 1
  for one, other in zip(*batches, strict=True):
    assert sorted(one) == sorted(other)
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])
