"""UL2's denoisers: what they replace, how they fit, and how they are mixed."""

import gin
import numpy as np
import pytest
import seqio
import tensorflow as tf

from selective_t5x.errors import UserError
from selective_t5x.tasks import span_corruption, ul2
from tests.support import smoke
from tests.tasks import span_corruption_test

CORPUS = 'text_files_ul2'
ALL = [name for name in ul2.DENOISERS if name not in ('r3', 's', 'x64')]
LENGTHS = {'inputs': 128, 'targets': 96}
FIRST_SENTINEL = 259
merge = span_corruption_test.merge
text = span_corruption_test.text
SENTINEL = FIRST_SENTINEL + span_corruption.NUM_SENTINELS - 1


def byte_ids(words):
  return [3 + byte for byte in words.encode()]


def examples(name, lengths=LENGTHS, seed=0):
  """Returns the examples of a task, each of its lists without the mode."""
  task = seqio.get_mixture_or_task(name)
  dataset = task.get_dataset(lengths, 'train', seed=seed, shuffle=False)
  return [
    {key: value.tolist() for key, value in example.items()}
    for example in dataset.as_numpy_iterator()
  ]


def without_mode(example, mode):
  prefix = byte_ids(mode)
  assert example['inputs'][: len(prefix)] == prefix
  return example | {'inputs': example['inputs'][len(prefix) :]}


def spans(targets):
  """Returns the lengths of the spans in targets, which end in EOS."""
  starts = [i for i, token in enumerate(targets) if token >= FIRST_SENTINEL]
  return np.diff([*starts, len(targets) - 1]) - 1


# Each traces a pipeline of its own.
@pytest.mark.parametrize('name', smoke.first(['r3', 's', 'x64', *ALL], 3))
def test_no_text_is_lost_and_so_much_of_it_is_replaced(name, text):
  denoiser = ul2.DENOISERS[name]
  rows = [
    without_mode(example, f'[{denoiser.mode.upper()}]')
    for example in examples(f'{CORPUS}_{name}')
  ]
  pieces = [merge(row, FIRST_SENTINEL) for row in rows]
  assert sum(pieces, []) == byte_ids(text)
  # Up to 128 of its 300 documents are joined: three last pieces are shorter.
  longest = ul2.text_length(denoiser, LENGTHS, len('[R]'))
  assert sorted(map(len, pieces))[3:] == [longest] * (len(pieces) - 3)

  lengths = [spans(row['targets']) for row in rows]
  share = np.sum(np.concatenate(lengths)) / len(byte_ids(text))
  assert share == pytest.approx(denoiser.noise_density, rel=0.1)
  if denoiser.mean_noise_span_length is None:
    assert all(len(row) == 1 for row in lengths)
    assert all(row['inputs'][-2] == SENTINEL for row in rows)
    assert len(np.unique(lengths)) > longest / 8  # Not always the same.
  else:
    # A piece has a whole number of spans.
    replaced = denoiser.noise_density * longest
    count = max(1, round(replaced / denoiser.mean_noise_span_length))
    mean = np.mean(np.concatenate(lengths))
    assert mean == pytest.approx(replaced / count, rel=0.15)


def test_a_single_span_may_lie_anywhere():
  rows = examples(f'{CORPUS}_x64')
  places = [
    row['inputs'].index(SENTINEL) / (len(row['inputs']) - 2) for row in rows
  ]
  counts, _ = np.histogram(places, bins=4, range=(0, 1))
  assert min(counts) > len(rows) / 10


@pytest.mark.parametrize(
  'name, lengths',
  smoke.first(
    [
      ('x3', {'inputs': 7, 'targets': 5}),
      ('s', {'inputs': 40, 'targets': 12}),
      ('r3', {'inputs': 20, 'targets': 90}),
      ('x64', {'inputs': 512, 'targets': 20}),
      ('s', {'inputs': 7, 'targets': 40}),
    ],
    2,
  ),
)
def test_no_example_is_cut(name, lengths, tmp_path):
  path = tmp_path / 'short.txt'
  path.write_text('A short text that has some words in it, and an end.')
  gin.parse_config(f"text_files.Files.train = '{path}'")
  merged = []
  for example in examples(f'{CORPUS}_{name}', lengths):
    for feature, length in lengths.items():
      assert len(example[feature]) <= length
    example = without_mode(example, f'[{name[0].upper()}]')
    merged += merge(example, FIRST_SENTINEL)
  assert merged == byte_ids(path.read_text())


def test_lengths_without_room_are_refused():
  with pytest.raises(UserError, match="'inputs': 5.*no room for two tokens"):
    examples(f'{CORPUS}_r3', {'inputs': 5, 'targets': 9})


def test_the_sentinels_are_enough():
  longest = ul2.text_length(
    ul2.DENOISERS['x3'], {'inputs': 2000, 'targets': 2000}, 3
  )
  assert round(longest / 2 / 3) == span_corruption.NUM_SENTINELS


def test_modes_are_bound_in_gin():
  gin.parse_config("""
    ul2.Modes.r = '[NLU] '
    ul2.Modes.s = ''
  """)
  assert without_mode(examples(f'{CORPUS}_r3')[0], '[NLU] ')
  first = examples(f'{CORPUS}_s')[0]
  assert first['inputs'][:4] == byte_ids('word')
  gin.parse_config('ul2.Modes.x = 3')
  with pytest.raises(UserError, match='ul2.Modes.x = 3: expected text'):
    examples(f'{CORPUS}_x3')


def shares(count=400):
  """Returns the share of each mode in the mixture."""
  mixture = seqio.get_mixture_or_task(CORPUS)
  dataset = mixture.get_dataset(
    LENGTHS, 'train', shuffle=False, num_epochs=None, seed=1
  )
  modes = [
    bytes(x - 3 for x in example['inputs'][:3]).decode()[1]
    for example in dataset.take(count).as_numpy_iterator()
  ]
  return {mode: modes.count(mode) / count for mode in 'RSX'}


def test_the_mixture_has_all_denoisers_at_one_rate():
  mixture = seqio.get_mixture_or_task(CORPUS)
  assert {task.name.removeprefix(f'{CORPUS}_') for task in mixture.tasks} == (
    set(ul2.DENOISERS)
  )
  expected = {'R': 2 / 7, 'S': 1 / 7, 'X': 4 / 7}
  assert shares() == pytest.approx(expected, abs=0.08)


def rates():
  mixture = seqio.get_mixture_or_task(CORPUS)
  return {
    task.name.removeprefix(f'{CORPUS}_'): mixture.get_rate(task)
    for task in mixture.tasks
  }


def test_rates_are_bound_in_gin():
  assert rates() == dict.fromkeys(ul2.DENOISERS, 1.0)
  gin.parse_config("""
    ul2.Rates.s = 6.0
    ul2.Rates.r = 0
  """)
  expected = {'r': 0, 's': 6, 'x': 1}
  assert rates() == {
    name: expected[denoiser.mode] for name, denoiser in ul2.DENOISERS.items()
  }


@pytest.mark.parametrize(
  'bindings, match',
  [
    (['ul2.Rates.s = -1'], 'ul2.Rates.s = -1: expected a number of 0 or more'),
    (["ul2.Rates.x = 'all'"], "ul2.Rates.x = 'all': expected a number"),
    (
      ['ul2.Rates.r = 0', 'ul2.Rates.s = 0', 'ul2.Rates.x = 0'],
      'ul2.Rates: all are 0',
    ),
  ],
)
def test_rates_without_meaning_are_refused(bindings, match):
  gin.parse_config(bindings)
  with pytest.raises(UserError, match=match):
    rates()


@pytest.mark.parametrize('corpus', ['wikipedia_sample', 'c4_json', 'c4_en'])
def test_every_corpus_has_the_mixture_and_span_corruptions_vocabulary(corpus):
  mixture = seqio.get_mixture_or_task(f'{corpus}_ul2')
  other = seqio.TaskRegistry.get(f'{corpus}_span_corruption')
  assert mixture.output_features['inputs'].vocabulary.task == (
    other.output_features['inputs'].vocabulary.task
  )


def test_every_place_of_a_span_is_equally_likely():
  denoiser = ul2.Denoiser('x', 0.4, 2.0)
  masks = tf.data.Dataset.range(600).map(
    lambda seed: denoiser.mask(
      tf.constant(5), 0.4, tf.stack([[seed, 1], [seed, 2]]), longest=9
    )
  )
  masks = np.array(list(masks.as_numpy_iterator()))
  np.testing.assert_array_equal(masks.sum(axis=1), 2)
  places = np.bincount(np.argmax(masks, axis=1), minlength=5) / 600
  np.testing.assert_allclose(places, [0, 1 / 3, 1 / 3, 1 / 3, 0], atol=0.07)
