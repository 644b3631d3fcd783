"""Where a stream of choices is cut, only whole questions count.

A question of c choices is c examples in a row. EVAL_EXAMPLES, a shuffle, shards
and batches cut that stream anywhere.
"""

import json

import gin
import numpy as np
import pytest
import seqio

from selective_t5x.errors import UserError
from selective_t5x.tasks import choice_scores
from tools import official_sets as official

LENGTHS = {'inputs': 128, 'targets': 128}
COUNTS = (3, 5, 4, 4, 3, 5)  # choices of each question


@pytest.fixture(autouse=True)
def arc(tmp_path):
  gin.parse_config(f"""
    vocabularies.Choice.kind = 'bytes'
    data_dir.root.path = '{tmp_path}'
  """)
  records = [
    {
      'question': {
        'stem': f'Question {number}?',
        'choices': [
          {'label': label, 'text': f'{label * (i + 1)}{number}'}
          for i, label in enumerate('ABCDE'[:count])
        ],
      },
      'answerKey': 'ABC'[number % 3],
    }
    for number, count in enumerate(COUNTS)
  ]
  official.write_lines(
    tmp_path / 'arc/ARC-Easy-Dev.jsonl', [json.dumps(r) for r in records]
  )


def score(text: bytes) -> float:
  """Returns a made-up log-likelihood of a choice's text."""
  return -1.0 - float(sum(text) % 23)


def examples(**kwargs):
  """Returns the examples of arc_easy, whole."""
  kwargs = {'split': 'validation', 'shuffle': False} | kwargs
  dataset = seqio.TaskRegistry.get('arc_easy').get_dataset(LENGTHS, **kwargs)
  return list(dataset.as_numpy_iterator())


def measured(rows):
  """Returns the task's metric of some of its examples."""
  task = seqio.TaskRegistry.get('arc_easy')
  scores = np.array([score(row['targets_pretokenized']) for row in rows])
  metric = task.metric_objs[0].from_model_output(
    rows, scores, task.output_features
  )
  values, _ = metric.actual_compute(rows, task.output_features)
  return values


def expected(numbers):
  """Returns the same of whole questions, by a loop over their choices."""
  source = seqio.TaskRegistry.get('arc_easy').source
  settings = [source.questions('validation')[number] for number in numbers]
  right = 0
  for question in settings:
    texts = [choice.encode() for choice in question.choices]
    rates = [score(text) / len(text.strip()) for text in texts]
    right += int(np.argmax(rates)) == question.label
  return {
    'questions': len(settings),
    'accuracy': right / len(settings),
    'chance': float(np.mean([1 / len(q.choices) for q in settings])),
  }


def assert_measures(values, numbers):
  wanted = expected(numbers)
  assert {name: values[name] for name in wanted} == pytest.approx(wanted)


@pytest.mark.parametrize('first', [0, 1, 4])
def test_a_cut_anywhere_counts_whole_questions(first, caplog):
  """EVAL_EXAMPLES and the like: every end, and a beginning inside one."""
  rows = examples()
  assert len(rows) == sum(COUNTS)
  starts = np.cumsum([0, *COUNTS])
  for end in range(first + 1, len(rows) + 1):
    numbers = [
      number
      for number in range(len(COUNTS))
      if first <= starts[number] and starts[number + 1] <= end
    ]
    caplog.clear()
    if not numbers:
      with pytest.raises(
        UserError, match=rf'{end - first} .*no whole question'
      ):
        measured(rows[first:end])
      continue
    assert_measures(measured(rows[first:end]), numbers)
    cut = len({tuple(row['idx'])[0] for row in rows[first:end]}) - len(numbers)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == bool(cut)
    assert not cut or told[0].startswith(f'{cut} of {cut + len(numbers)} ')


def test_choices_in_another_order_are_put_together():
  rows = examples()
  order = np.random.default_rng(0).permutation(len(rows))
  shuffled = [rows[i] for i in order]
  assert_measures(measured(shuffled), range(len(COUNTS)))
  there = {}
  for row in shuffled[:20]:
    there.setdefault(int(row['idx'][0]), []).append(row)
  numbers = [n for n in sorted(there) if len(there[n]) == COUNTS[n]]
  assert 0 < len(numbers) < len(there)
  assert_measures(measured(shuffled[:20]), numbers)


@pytest.mark.parametrize('shuffle', [False, True])
def test_evaluators_that_take_some_examples(shuffle):
  evaluator = seqio.Evaluator(
    'arc_easy',
    feature_converter=seqio.EncDecFeatureConverter(pack=False),
    eval_split='validation',
    sequence_length=LENGTHS,
    num_examples=14,
    shuffle=shuffle,
    seed=2,
  )
  rows = list(evaluator.cached_task_datasets['arc_easy'].as_numpy_iterator())
  counts = {}
  for row in rows:
    number = int(row['idx'][0])
    counts[number] = counts.get(number, 0) + 1
  numbers = [n for n in sorted(counts) if counts[n] == COUNTS[n]]
  assert len(rows) == 14 and 0 < len(numbers) < len(counts)
  scores = [(i, score(r['targets_pretokenized'])) for i, r in enumerate(rows)]
  future, _ = evaluator.evaluate(
    compute_metrics=True, step=0, score_fn=lambda dataset: scores
  )
  assert_measures(future.result()['arc_easy'], numbers)


def test_shards_hold_whole_questions_under_their_own_numbers():
  """As inference by several jobs reads them."""
  whole = {tuple(row['idx']): row['targets_pretokenized'] for row in examples()}
  parts = [examples(shard_info=seqio.ShardInfo(index, 4)) for index in range(4)]
  joined = {}
  for part in parts:
    numbers = sorted({int(row['idx'][0]) for row in part})
    assert len(part) == sum(COUNTS[number] for number in numbers)
    assert_measures(measured(part), numbers)
    joined |= {tuple(row['idx']): row['targets_pretokenized'] for row in part}
  assert joined == whole
  assert_measures(measured(sum(parts, [])), range(len(COUNTS)))


def test_a_repeated_split_counts_each_question_once():
  rows = examples(num_epochs=2)
  assert len(rows) == 2 * sum(COUNTS)
  assert_measures(measured(rows), range(len(COUNTS)))


@pytest.mark.parametrize('count', [1, 4, 100])
@pytest.mark.parametrize('shards', [1, 3])
def test_the_first_questions_alone(count, shards):
  """EVAL_QUESTIONS, whatever the number of shards."""
  gin.bind_parameter('questions.first_questions.count', count)
  rows = sum(
    (
      examples(shard_info=seqio.ShardInfo(index, shards))
      for index in range(shards)
    ),
    [],
  )
  assert_measures(measured(rows), range(min(count, len(COUNTS))))


@pytest.mark.parametrize('count', [0, -1, 2.5, '3', True])
def test_a_number_of_questions_that_is_none(count):
  gin.bind_parameter('questions.first_questions.count', count)
  with pytest.raises(UserError, match='first_questions.count = .*: expected'):
    examples()


def test_the_first_passages_of_lambada(tmp_path):
  official.write_lines(
    tmp_path / 'lambada/lambada_test.jsonl',
    [json.dumps({'text': f'passage number {i}'}) for i in range(5)],
  )
  gin.bind_parameter('questions.first_questions.count', 2)
  dataset = seqio.TaskRegistry.get('lambada').get_dataset(
    LENGTHS, split='validation', shuffle=False
  )
  targets = [x['targets_pretokenized'] for x in dataset.as_numpy_iterator()]
  assert targets == [b' 0', b' 1']


def test_scores_that_are_no_numbers_are_no_answer():
  """argmax takes the first NaN for the best, which looks like an accuracy."""
  targets = [
    choice_scores.Target((0, i), not i, 1.0, 1, 1, False, 2) for i in range(2)
  ]
  with pytest.raises(UserError, match='1 of 2 choices are not a number'):
    choice_scores.choice_accuracy(targets, np.array([np.nan, -1.0]))
