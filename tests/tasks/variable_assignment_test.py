import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import seqio

from tests.tasks import examples, pipelines

TASKS = [
  ('variable_assignment', 'train'),
  ('variable_assignment', 'validation'),
  ('variable_assignment', 'test'),
  ('variable_assignment_ood', 'validation'),
  ('variable_assignment_ood', 'test'),
]


def interpret(inputs):
  """Runs the assignments; returns every variable's values and the query."""
  *pairs, query = inputs
  history = {}
  for variable, value in zip(pairs[::2], pairs[1::2], strict=True):
    history.setdefault(variable, []).append(value)
  return history, query, pairs


@hypothesis.settings(deadline=None, max_examples=8)
@hypothesis.given(
  num_assignments=st.integers(1, 40),
  num_variables=st.integers(2, 60),
  num_values=st.integers(2, 30),
  seed=st.integers(0, 2**31),
)
@pytest.mark.parametrize('task, split', TASKS)
def test_the_answer_is_the_latest_value(
  task, split, num_assignments, num_variables, num_values, seed
):
  for inputs, targets in examples.words(
    task,
    split,
    seed=seed,
    num_assignments=num_assignments,
    num_variables=num_variables,
    num_values=num_values,
  ):
    history, query, pairs = interpret(inputs)
    assert len(pairs) == 2 * num_assignments
    assert targets == history[query][-1:]
    assert all(0 <= int(v) < num_values for v in pairs[1::2])


@pytest.mark.parametrize(
  'task, split, seed, expected',
  [
    (
      'variable_assignment',
      'train',
      0,
      ['q 7 q 11 m 8 u 11 t 11 m -> 8', 'y 1 a 8 t 6 v 0 c 1 t -> 6'],
    ),
    (
      'variable_assignment',
      'train',
      7,
      ['a1 9 n 3 c1 11 x 3 c1 8 a1 -> 9', 'a1 4 f 6 k 3 n 8 u 11 u -> 11'],
    ),
    (
      'variable_assignment',
      'validation',
      0,
      ['a 5 q 9 d1 9 w 10 k 3 w -> 10', 's 4 w 8 e 8 r 6 h 2 r -> 6'],
    ),
    (
      'variable_assignment_ood',
      'validation',
      0,
      ['d1 2 h 8 j 2 c 4 c1 8 d1 -> 2', 'a 0 c 6 n 6 l 8 f 10 a -> 0'],
    ),
  ],
)
def test_examples_that_published_figures_rest_on(task, split, seed, expected):
  drawn = examples.words(
    task,
    split,
    count=2,
    seed=seed,
    num_assignments=5,
    num_variables=30,
    num_values=12,
  )
  lines = [f'{" ".join(inputs)} -> {targets[0]}' for inputs, targets in drawn]
  assert lines == expected


def test_out_of_distribution_asks_for_what_was_assigned_only_first():
  for split in ('validation', 'test'):
    for inputs, _ in examples.words('variable_assignment_ood', split, 100):
      history, query, pairs = interpret(inputs)
      assert pairs[0] == query
      assert len(history[query]) == 1


@pytest.mark.parametrize('task, split', TASKS)
def test_every_variable_and_value_is_used_and_asked_for(task, split):
  drawn = examples.words(task, split, 300)
  assert {inputs[-1] for inputs, _ in drawn} == set('abcdefgh')
  assert {v for inputs, _ in drawn for v in inputs[:-1:2]} == set('abcdefgh')
  assert {v for inputs, _ in drawn for v in inputs[1::2]} == set('0123456789')
  answers = [targets[0] for _, targets in drawn]
  counts = np.unique(answers, return_counts=True)[1]
  assert len(counts) == 10 and counts.min() > 10  # about 30 each


def test_no_two_splits_share_an_example():
  sets = [
    {tuple(inputs) for inputs, _ in examples.words(task, split, 200)}
    for task, split in TASKS
  ]
  assert len(set.union(*sets)) == 200 * len(TASKS)


@pytest.mark.parametrize('pack', [False, True])
def test_a_saved_out_of_distribution_iterator_goes_on_exactly(pack, tmp_path):
  pipelines.assert_iterator_resumes(
    lambda: pipelines.dataset(
      'variable_assignment_ood',
      {'inputs': 49, 'targets': 1},
      split='validation',
      pack=pack,
    ),
    tmp_path,
  )


def test_the_mixture_names_both_tasks():
  mixture = seqio.get_mixture_or_task('variable_assignment_eval')
  assert sorted(t.name for t in seqio.get_subtasks(mixture)) == [
    'variable_assignment',
    'variable_assignment_ood',
  ]
