"""Shared metrics of a model's log-likelihood scores.

A score metric is a function of (targets, scores). Scores are the results of the
model's score_batch for a whole split: f32[n], or with
models.LanguageModel.score_argmax a pair of it and {'is_argmax': bool[n]}:
whether every target token was the likeliest one after the tokens before it, so
that greedy decoding would have written the targets.

    metric_objs=[metrics.of_scores(metrics.exact_match)]
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
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
    UserError: the scores do not contain it.
  """
  if not isinstance(scores, tuple) or 'is_argmax' not in scores[1]:
    raise UserError(
      'this metric needs models.LanguageModel.score_argmax = True, as '
      'gin/runs/eval.gin sets it'
    )
  return np.asarray(scores[1]['is_argmax'], bool)


def exact_match(targets: Sequence[Any], scores: Scores) -> dict[str, float]:
  """Returns the share of examples, 0 to 1, that greedy decoding gets right."""
  del targets
  return {'exact_match': float(np.mean(is_argmax(scores)))}


exact_match.reads_argmax = True


def of_scores(
  metric_fn: Callable[..., Mapping[str, float]],
  postprocess_fn: Callable[..., Any] | None = None,
) -> type[seqio.metrics.CollectingMetric]:
  """Returns a score metric as a seqio metric, for a task's metric_objs.

  In metric_fns it would be computed as well, but seqio's JSON logger cannot
  write a pair of scores and further arrays.

  Args:
    metric_fn: (targets, scores) -> {name: value}; with the attribute
      reads_argmax = True if it needs `is_argmax`.
    postprocess_fn: makes the targets, as in a seqio task.
  """
  base = seqio.metrics.PassthroughLegacyMetric.from_metric_fn(
    metric_fn, postprocess_fn
  )

  @flax.struct.dataclass
  class ScoreMetric(base):
    """Logs the score of each example, and is_argmax beside it."""

    reads_argmax = getattr(metric_fn, 'reads_argmax', False)

    @classmethod
    def from_model_output(
      cls, inputs, model_output, features, *args, mask=None, indices_2d=None
    ):
      # In NumPy: seqio's defaults compile JAX operations for every split.
      count = len(log_likelihoods(model_output))
      if mask is None:
        mask = np.ones(count, np.int32)
      if indices_2d is None:
        indices_2d = np.stack([np.zeros(count, int), np.arange(count)], axis=1)
      return super().from_model_output(
        inputs,
        model_output,
        features,
        *args,
        mask=mask,
        indices_2d=indices_2d,
      )

    def actual_compute(self, *args, **kwargs):
      values, logged = super().actual_compute(*args, **kwargs)
      if isinstance(logged['score'], tuple):
        logged['score'], others = logged['score']
        logged.update(others)
      return values, logged

  return ScoreMetric


def task_reads_argmax(task: str, module: str | None = None) -> bool:
  """Returns whether a metric of the task or mixture calls `is_argmax`.

      models.LanguageModel.score_argmax = @metrics.task_reads_argmax()
      metrics.task_reads_argmax.task = %EVAL_TASK_NAME

  Such a metric has the attribute reads_argmax = True. Other metrics, such as
  the t5 package's, then get the plain array that they expect.

  Args:
    task: name of a task or mixture; an unregistered one gives False.
    module: imported first, to register the task.
  """
  if module:
    importlib.import_module(module)
  if task not in {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}:
    return False  # the run itself reports it, with the nearest names
  return any(
    getattr(metric, 'reads_argmax', False)
    for subtask in seqio.get_subtasks(seqio.get_mixture_or_task(task))
    for metric in (*subtask.metric_fns, *subtask.metric_objs)
  )
