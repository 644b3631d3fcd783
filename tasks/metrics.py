"""Metrics that several tasks share, of a model's log-likelihood scores.

A score metric of seqio gets what the model's score_batch returned for a whole
split: f32[n], or with models.LanguageModel.score_argmax a pair of it and
{'is_argmax': bool[n]}, whether every target token was the likeliest one. Given
the tokens before it, that is what greedy decoding would have written.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seqio

from selective_t5x.errors import UserError

Scores = np.ndarray | tuple[np.ndarray, Mapping[str, np.ndarray]]


def log_likelihoods(scores: Scores) -> np.ndarray:
  """Returns f64[n], the log-likelihood of each example's targets in nats."""
  values = scores[0] if isinstance(scores, tuple) else scores
  return np.asarray(values, np.float64)


def is_argmax(scores: Scores) -> np.ndarray:
  """Returns bool[n], whether greedy decoding would have given the targets.

  Raises:
    UserError: the model did not say.
  """
  if not isinstance(scores, tuple) or 'is_argmax' not in scores[1]:
    raise UserError(
      'this metric needs models.LanguageModel.score_argmax = True, as '
      'gin/runs/eval.gin sets it'
    )
  return np.asarray(scores[1]['is_argmax'], bool)


def exact_match(targets: Sequence[Any], scores: Scores) -> dict[str, float]:
  """Returns the share of examples, 0 to 1, that greedy decoding gets whole."""
  del targets
  return {'exact_match': float(np.mean(is_argmax(scores)))}


exact_match.reads_argmax = True


def task_reads_argmax(task: str, module: str | None = None) -> bool:
  """Returns whether a metric of the task or mixture calls `is_argmax`.

      models.LanguageModel.score_argmax = @metrics.task_reads_argmax()
      metrics.task_reads_argmax.task = %EVAL_TASK_NAME

  A metric function says so by an attribute, reads_argmax = True. Others, those
  of the t5 package for one, then get the array that they expect.

  Args:
    task: name of a task or mixture; one that is not registered reads nothing.
    module: imported first, to register the task.
  """
  if module:
    importlib.import_module(module)
  if task not in {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}:
    return False  # the run itself says so, with the nearest names
  return any(
    getattr(metric_fn, 'reads_argmax', False)
    for subtask in seqio.get_subtasks(seqio.get_mixture_or_task(task))
    for metric_fn in subtask.metric_fns
  )
