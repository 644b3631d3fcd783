"""What every synthetic task keeps; a new one joins TASKS.

That its answers are right is tested in a file of its own.
"""

import collections
import math
import pathlib
import re

import gin
import numpy as np
import pytest
import seqio
import tensorflow as tf

from selective_t5x import tasks as _  # noqa: F401
from selective_t5x.errors import UserError
from selective_t5x.tasks import synthetic
from tests.support import smoke
from tests.tasks import pipelines

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Task: the lengths of inputs and targets at the default difficulty.
TASKS = {
  'copy': (25, 24),
  'frequent_words': (33, 3),
  'multi_key': (50, 1),
  'needle_l50': (33, 1),
  'needle_retrieval': (57, 1),
  'parity': (17, 16),
  'token_counting': (33, 1),
  'variable_assignment': (49, 1),
  'variable_tracking': (41, 4),
}
# What one function does for all of them is quick for two.
SOME = smoke.first(TASKS, 2)
SPLITS = ('train', 'validation', 'test')


def lengths(task):
  return dict(zip(('inputs', 'targets'), TASKS[task], strict=True))


def drawn(task, split='train', seed=0, count=200, **kwargs):
  """Returns the inputs of examples as bytes, in order."""
  ds = seqio.get_mixture_or_task(task).get_dataset(
    split=split, seed=seed, num_epochs=None, **kwargs
  )
  return [e['inputs'].tobytes() for e in ds.take(count).as_numpy_iterator()]


def vocabulary(task):
  return seqio.get_mixture_or_task(task).output_features['inputs'].vocabulary


@pytest.mark.parametrize('task', TASKS)
def test_splits_and_seeds_differ_and_repeat(task):
  # Of 16 bits there are so few that some come up twice.
  gin.parse_config('parity.Difficulty.length = 40')
  train, validation, test = (drawn(task, split) for split in SPLITS)
  for examples in (train, validation, test):
    assert len(set(examples)) == 200
  assert not set(train) & set(validation)
  assert not set(train) & set(test)
  assert not set(validation) & set(test)
  assert drawn(task) == train
  assert not set(drawn(task, seed=1)) & set(train)
  # Every run is evaluated on the same examples, whatever its seed.
  assert drawn(task, 'validation', seed=1) == validation
  assert drawn(task, 'test', seed=1) == test


@pytest.mark.parametrize('task', TASKS)
def test_evaluation_splits_have_ten_thousand_examples(task):
  source = seqio.get_mixture_or_task(task).source
  for split in ('validation', 'test'):
    assert source.get_dataset(split).cardinality() == 10_000
  assert source.get_dataset('train').cardinality() > 10**12


@pytest.mark.parametrize('task', SOME)
def test_hosts_share_the_examples(task):
  for split in ('train', 'validation'):
    whole = drawn(task, split, seed=3, count=12)
    for index in range(2):
      shard = drawn(
        task, split, seed=3, count=6, shard_info=seqio.ShardInfo(index, 2)
      )
      assert shard == whole[index::2]


@pytest.mark.parametrize('task', SOME)
def test_a_saved_iterator_goes_on_exactly(task, tmp_path):
  pipelines.assert_iterator_resumes(
    lambda: pipelines.dataset(task, lengths(task), pack=False), tmp_path
  )


@pytest.mark.parametrize('task', SOME)
@pytest.mark.parametrize('pack', [False, True])
def test_the_loss_falls_on_the_targets_only(task, pack):
  inputs, targets = TASKS[task]
  ds = pipelines.dataset(task, lengths(task), pack=pack)
  for batch in pipelines.batches(ds, 2):
    weights = batch['decoder_loss_weights']
    assert weights.shape == (4, inputs + targets)
    assert not weights[:, :inputs].any() and weights[:, inputs:].all()
    assert (batch['decoder_input_tokens'][:, 0] == 0).all()
    assert (batch['decoder_target_tokens'] >= synthetic.FIRST_ID).all()


@pytest.mark.parametrize('task', TASKS)
def test_every_symbol_comes_up_and_text_comes_back(task):
  words = vocabulary(task)
  ds = seqio.get_mixture_or_task(task).get_dataset(split='validation')
  seen = set()
  for example in ds.take(300).as_numpy_iterator():
    for ids in example.values():
      assert words.encode(words.decode(ids)) == ids.tolist()
      seen |= set(ids.tolist())
  assert seen == set(range(synthetic.FIRST_ID, words.vocab_size))


@pytest.mark.parametrize('task', TASKS)
def test_no_answer_is_more_likely_than_the_others(task):
  """A constant guess of the last token gets what the task's file says."""
  ds = seqio.get_mixture_or_task(task).get_dataset(split='validation')
  last = [int(e['targets'][-1]) for e in ds.take(2000).as_numpy_iterator()]
  counts = collections.Counter(last)
  answers = {'copy': 16, 'parity': 2, 'variable_tracking': 12}
  chance = 1 / answers.get(task, 10)
  deviation = math.sqrt(chance * (1 - chance) / 2000)
  assert len(counts) == round(1 / chance)
  for count in counts.values():
    assert abs(count / 2000 - chance) < 4.5 * deviation


@pytest.mark.parametrize('task', SOME)
@pytest.mark.parametrize('feature', ['inputs', 'targets'])
def test_lengths_that_would_cut_an_example_are_refused(task, feature):
  short = lengths(task)
  short[feature] -= 1
  message = (
    rf"TASK_FEATURE_LENGTHS\['{feature}'\] is {short[feature]}: {task} .* "
    + re.escape(str(lengths(task)))
  )
  with pytest.raises(UserError, match=message):
    pipelines.dataset(task, short)
  del short[feature]
  with pytest.raises(UserError, match='is 0: '):
    pipelines.dataset(task, short)


@pytest.mark.parametrize(
  'binding, expected',
  [
    ('copy_task.Difficulty.length = 0', 'at least 1'),
    ('copy_task.Difficulty.num_symbols = 1', 'at least 2'),
    ('copy_task.Difficulty.num_symbols = True', 'a whole number'),
    ('frequent_words.Difficulty.num_frequent = 10', 'less than num_symbols'),
    ('frequent_words.Difficulty.frequent = 2', 'more than rare, 2'),
    ('multi_key.Difficulty.num_letters = 3', 'at least num_needles, 16'),
    ('multi_key.Difficulty.num_values = 1', 'at least 2'),
    ('variable_tracking.Difficulty.num_variables = 7', '(num_hops + 1), 8'),
    ('variable_tracking.Difficulty.num_values = 1', 'at least num_chains, 2'),
    ('variable_tracking.Difficulty.num_hops = -1', 'at least 0'),
    ('needle_retrieval.Difficulty.num_filler = -1', 'at least 0'),
    ('needle_retrieval.Difficulty.num_needles = 0', 'at least 1'),
    ('needle_retrieval.Difficulty.num_keys = 3', 'at least num_needles, 4'),
    ('needle_retrieval.Difficulty.num_values = 1', 'at least 2'),
    ('needle_retrieval.Difficulty.num_filler_words = 0.5', 'at least 1'),
    ('parity.Difficulty.length = 0', 'at least 1'),
    ("parity.Difficulty.scratchpad = 'no'", 'True or False'),
    ('token_counting.Difficulty.length = 8', 'at least max_count, 9'),
    ('token_counting.Difficulty.num_symbols = 1', 'at least 2'),
    ('token_counting.Difficulty.max_count = 0', 'at least 1'),
    ('variable_assignment.Difficulty.num_assignments = 0', 'at least 1'),
    ('variable_assignment.Difficulty.num_variables = 1', 'at least 2'),
    ("variable_assignment.Difficulty.num_values = '9'", 'a whole number'),
  ],
)
def test_numbers_that_leave_nothing_to_ask_are_refused(binding, expected):
  gin.parse_config(binding)
  task = binding.split('.')[0].removesuffix('_task')
  with pytest.raises(UserError) as error:
    seqio.get_mixture_or_task(task).get_dataset(split='train')
  message = str(error.value).splitlines()[0]  # gin adds where it was called
  assert message.startswith(f'{binding}: expected ') and expected in message


def test_vocabulary_in_python_and_tensorflow_agree():
  gin.parse_config('variable_assignment.Difficulty.num_variables = 30')
  words = vocabulary('variable_assignment')
  assert words.vocab_size == 3 + 30 + 10
  text = 'a 3 z 9 a1 0 d1 ? q2 11 b'
  ids = words.encode(text)
  assert ids[-3:] == [2, 2, 4]  # neither q2 nor 11 exists here
  assert words.encode_tf(tf.constant(text)).numpy().tolist() == ids
  padded = [*ids, 1, 5, 0]
  assert words.decode(padded) == 'a 3 z 9 a1 0 d1 ? ? ? b'
  decoded = words.decode_tf(tf.constant([padded, padded]))
  assert decoded.numpy().tolist() == [b'a 3 z 9 a1 0 d1 ? ? ? b'] * 2


def test_vocabularies_are_equal_within_a_difficulty_only():
  for task in TASKS:
    for other in TASKS:
      same = vocabulary(task).difficulty is vocabulary(other).difficulty
      assert (vocabulary(task) == vocabulary(other)) == same
  assert vocabulary('needle_l50') == vocabulary('needle_retrieval')
  assert vocabulary('copy') != vocabulary('parity')
  assert vocabulary('copy') != seqio.ByteVocabulary()
  gin.parse_config('copy_task.Difficulty.num_symbols = 5')
  assert str(vocabulary('copy')) == (
    'SymbolVocabulary(copy_task.Difficulty(length=24, num_symbols=5))'
  )


@pytest.mark.parametrize('task', TASKS)
def test_exact_match_is_the_metric(task):
  (metric,) = seqio.get_mixture_or_task(task).metric_objs
  scores = (np.zeros(4), {'is_argmax': np.array([True, True, False, True])})
  examples = [{'targets_pretokenized': ''}] * 4
  collected = metric.from_model_output(examples, scores, {})
  values = collected.actual_compute(examples, {})[0]
  assert values == {'exact_match': 0.75}


def test_the_task_of_the_documentation(tmp_path, monkeypatch):
  text = (ROOT / 'docs/tasks/synthetic.md').read_text()
  (tmp_path / 'reverse.py').write_text(
    re.search(r'```python\n(.*?)```', text, re.DOTALL)[1]
  )
  monkeypatch.syspath_prepend(tmp_path)
  import reverse  # noqa: F401

  gin.parse_config('reverse.Difficulty.length = 5')
  for split in SPLITS:
    ds = seqio.get_mixture_or_task('reverse').get_dataset(
      {'inputs': 5, 'targets': 5}, split=split
    )
    for example in ds.take(3).as_numpy_iterator():
      inputs, targets = example['inputs'], example['targets']
      assert inputs.tolist() == targets.tolist()[::-1]
  seqio.TaskRegistry.remove('reverse')
