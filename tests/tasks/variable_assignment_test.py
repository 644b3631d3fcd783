import gin
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pipelines
import pytest
import seqio
import tensorflow as tf

from selective_t5x.errors import UserError
from selective_t5x.tasks import variable_assignment

TASKS = [
  ('variable_assignment', 'train'),
  ('variable_assignment', 'validation'),
  ('variable_assignment_ood', 'validation'),
]


def bind(assignments=24, variables=8, values=10):
  gin.clear_config()
  gin.parse_config(f"""
    variable_assignment.Difficulty.num_assignments = {assignments}
    variable_assignment.Difficulty.num_variables = {variables}
    variable_assignment.Difficulty.num_values = {values}
  """)
  return {'inputs': 2 * assignments + 1, 'targets': 1}


def examples(task, split, count, seed=0, lengths=None):
  ds = seqio.get_mixture_or_task(task).get_dataset(
    lengths, split=split, seed=seed, num_epochs=None
  )
  return list(ds.take(count).as_numpy_iterator())


def interpret(text):
  """Runs the assignments; returns every variable's values and the query."""
  *pairs, query = text.split()
  history = {}
  for variable, value in zip(pairs[::2], pairs[1::2], strict=True):
    history.setdefault(variable, []).append(value)
  return history, query, pairs


@hypothesis.settings(deadline=None, max_examples=15)
@hypothesis.given(
  assignments=st.integers(1, 40),
  variables=st.integers(2, 60),
  values=st.integers(2, 30),
  seed=st.integers(0, 2**31),
)
@pytest.mark.parametrize('task, split', TASKS)
def test_the_answer_is_the_latest_value(
  task, split, assignments, variables, values, seed
):
  lengths = bind(assignments, variables, values)
  vocabulary = variable_assignment.VariableVocabulary()
  for example in examples(task, split, 4, seed, lengths):
    text = vocabulary.decode(example['inputs'])
    assert vocabulary.encode(text) == example['inputs'].tolist()
    history, query, pairs = interpret(text)
    assert len(pairs) == 2 * assignments
    assert vocabulary.decode(example['targets']) == history[query][-1]
    assert all(0 <= int(v) < values for v in pairs[1::2])
    assert example['inputs'].max() < vocabulary.vocab_size


def test_out_of_distribution_asks_for_what_was_assigned_only_first():
  vocabulary = variable_assignment.VariableVocabulary()
  for example in examples('variable_assignment_ood', 'validation', 100):
    history, query, pairs = interpret(vocabulary.decode(example['inputs']))
    assert pairs[0] == query
    assert len(history[query]) == 1


def test_every_variable_and_value_is_used_and_asked_for():
  vocabulary = variable_assignment.VariableVocabulary()
  for task, split in TASKS:
    drawn = examples(task, split, 300)
    texts = [vocabulary.decode(e['inputs']).split() for e in drawn]
    assert {t[-1] for t in texts} == set('abcdefgh')
    assert {v for t in texts for v in t[:-1:2]} == set('abcdefgh')
    assert {v for t in texts for v in t[1::2]} == set('0123456789')
    answers = [vocabulary.decode(e['targets']) for e in drawn]
    counts = np.unique(answers, return_counts=True)[1]
    assert len(counts) == 10 and counts.min() > 10  # about 30 each


def test_splits_and_seeds_differ_and_repeat():
  def texts(*args):
    return {e['inputs'].tobytes() for e in examples(*args)}

  train = texts('variable_assignment', 'train', 200)
  validation = texts('variable_assignment', 'validation', 200)
  ood = texts('variable_assignment_ood', 'validation', 200)
  assert len(train) == len(validation) == len(ood) == 200
  assert not train & validation and not train & ood and not validation & ood
  assert train == texts('variable_assignment', 'train', 200)
  assert not train & texts('variable_assignment', 'train', 200, 1)
  # Every run is evaluated on the same examples, whatever its seed.
  assert validation == texts('variable_assignment', 'validation', 200, 1)


def test_hosts_share_the_examples():
  def shard(index, num_shards):
    ds = seqio.get_mixture_or_task('variable_assignment').get_dataset(
      split='train',
      seed=3,
      shard_info=seqio.ShardInfo(index, num_shards),
    )
    return [e['inputs'].tobytes() for e in ds.take(20).as_numpy_iterator()]

  whole = shard(0, 1)
  assert whole[::2] == shard(0, 2)[:10]
  assert whole[1::2] == shard(1, 2)[:10]


@pytest.mark.parametrize('task, split', TASKS)
@pytest.mark.parametrize('pack', [False, True])
def test_a_saved_iterator_goes_on_exactly(task, split, pack, tmp_path):
  pipelines.assert_iterator_resumes(
    lambda: pipelines.dataset(
      task, {'inputs': 49, 'targets': 1}, split=split, pack=pack
    ),
    tmp_path,
  )


@pytest.mark.parametrize('pack', [False, True])
def test_the_loss_falls_on_the_answer_only(pack):
  ds = pipelines.dataset(
    'variable_assignment', {'inputs': 49, 'targets': 1}, pack=pack
  )
  for batch in pipelines.batches(ds, 3):
    weights = batch['decoder_loss_weights']
    assert weights.shape == (4, 50)
    assert (weights.sum(axis=1) == 1).all() and weights[:, -1].all()
    assert (batch['decoder_input_tokens'][:, 0] == 0).all()
    assert (batch['decoder_target_tokens'] > 2).all()


def test_the_mixture_names_both_tasks():
  mixture = seqio.get_mixture_or_task('variable_assignment_eval')
  assert sorted(t.name for t in seqio.get_subtasks(mixture)) == [
    'variable_assignment',
    'variable_assignment_ood',
  ]


def test_vocabulary_in_python_and_tensorflow_agree():
  bind(variables=30)
  vocabulary = variable_assignment.VariableVocabulary()
  assert vocabulary.vocab_size == 3 + 30 + 10
  text = 'a 3 z 9 a1 0 d1 ? q2 11 b'
  ids = vocabulary.encode(text)
  assert ids[-3:] == [2, 2, 4]  # neither q2 nor 11 exists here
  assert vocabulary.encode_tf(tf.constant(text)).numpy().tolist() == ids
  padded = [*ids, 1, 5, 0]
  assert vocabulary.decode(padded) == 'a 3 z 9 a1 0 d1 ? ? ? b'
  decoded = vocabulary.decode_tf(tf.constant([padded, padded]))
  assert decoded.numpy().tolist() == [b'a 3 z 9 a1 0 d1 ? ? ? b'] * 2


@pytest.mark.parametrize(
  'lengths', [{'inputs': 48, 'targets': 1}, {'targets': 1}, {'inputs': 49}]
)
def test_lengths_that_would_cut_an_example_are_refused(lengths):
  with pytest.raises(UserError, match="'inputs': 49, 'targets': 1"):
    pipelines.dataset('variable_assignment', lengths)


@pytest.mark.parametrize(
  'binding', ['num_assignments = 0', 'num_variables = 1', "num_values = '9'"]
)
def test_numbers_that_leave_nothing_to_ask_are_refused(binding):
  gin.parse_config(f'variable_assignment.Difficulty.{binding}')
  with pytest.raises(UserError, match=binding.split()[0]):
    variable_assignment.Difficulty()
