import numpy as np
import pytest
import seqio

from selective_t5x.errors import UserError
from selective_t5x.tasks import metrics


def test_exact_match_is_the_share_of_whole_targets():
  scores = (np.zeros(4), {'is_argmax': np.array([1, 0, 0, 0])})
  assert metrics.exact_match([None] * 4, scores) == {'exact_match': 0.25}
  with pytest.raises(UserError, match='score_argmax = True'):
    metrics.exact_match([None] * 4, scores[0])


def test_scores_and_what_else_the_model_says_are_logged_one_by_one():
  def metric(targets, scores):
    assert targets == ['a', 'b']
    return {'mean': float(np.mean(metrics.log_likelihoods(scores)))}

  def logged(output):
    examples = [{'targets_pretokenized': text} for text in ('a', 'b')]
    collected = metrics.of_scores(metric).from_model_output(
      examples, output, {}
    )
    return collected.actual_compute(examples, {})

  scores, is_argmax = np.array([-1.0, -3.0]), np.array([True, False])
  values, columns = logged((scores, {'is_argmax': is_argmax}))
  assert values == {'mean': -2.0}
  assert columns['score'].tolist() == [-1.0, -3.0]
  assert columns['is_argmax'].tolist() == [True, False]
  assert logged(scores)[0] == values


@pytest.mark.parametrize(
  'task, reads',
  [
    ('lambada', True),
    ('variable_assignment_eval', True),
    ('downstream', True),
    ('hellaswag', False),
    ('wikipedia_sample_lm', False),
    ('nobody_registered_this', False),
  ],
)
def test_which_tasks_read_the_argmax(task, reads):
  assert metrics.task_reads_argmax(task) is reads


def test_a_task_of_ones_own_says_so_itself():
  def mine(targets, scores):
    del targets, scores
    return {}

  def add(name):
    return seqio.TaskRegistry.add(
      name,
      source=seqio.TextLineDataSource({'train': 'nowhere.txt'}),
      preprocessors=[],
      output_features={'targets': seqio.Feature(seqio.ByteVocabulary())},
      metric_fns=[mine],
    )

  try:
    add('plain_scores')
    assert not metrics.task_reads_argmax('plain_scores')
    mine.reads_argmax = True
    assert metrics.task_reads_argmax('plain_scores', module='json')
  finally:
    seqio.TaskRegistry.remove('plain_scores')
