"""Actions watch metrics during training and may stop it."""

import abc
import enum
from collections.abc import Mapping, Sequence

import clu.values
import numpy as np
from absl import logging

from t5x import metric_values
from t5x.train_state import TrainState

__all__ = (
  'ActionMapType',
  'ActionMode',
  'BaseAction',
  'EarlyStoppingAction',
  'TerminateOnNanAction',
)


@enum.unique
class ActionMode(enum.Enum):
  """The event after which an action runs: train steps, or an evaluation."""

  TRAIN = 1
  TRAIN_EVAL = 2
  INFER_EVAL = 3


class BaseAction(abc.ABC):
  """Watches metrics during training and may stop it."""

  @abc.abstractmethod
  def run(
    self,
    train_state: TrainState,
    metrics_by_task: Mapping[str, Mapping[str, clu.values.Value]],
  ) -> bool:
    """Returns whether training should stop."""


ActionMapType = Mapping[ActionMode, Sequence[BaseAction]]


def _watched_value(metrics_by_task, task: str, metric: str) -> float | None:
  """Returns the metric an action watches, or None, with a warning."""
  value = metrics_by_task.get(task, {}).get(metric)
  number = metric_values.number(getattr(value, 'value', value))
  if value is None or number is None:
    logging.warning(
      'An action watches %s of %s, which is no number there; there are %s.',
      metric,
      task,
      {t: sorted(m) for t, m in metrics_by_task.items()},
    )
    return None
  return number


class EarlyStoppingAction(BaseAction):
  """Stops when a metric has not improved `patience` times in a row."""

  def __init__(
    self,
    metric: tuple[str, str],
    mode: str,
    patience: int = 3,
    atol: float = 0.0,
    rtol: float = 0.0,
  ):
    """Stores the settings.

    Args:
      metric: (task, metric name); the task of train steps is 'train'.
      mode: 'min' if lower is better, 'max' if higher is better.
      patience: number of values to compare.
      atol: an improvement is larger than atol + rtol * |previous value|.
      rtol: see atol.

    Raises:
      ValueError: another mode, or a negative tolerance.
    """
    if mode not in ('min', 'max'):
      raise ValueError(f"mode must be in ['min', 'max'], got {mode!r}")
    if atol < 0 or rtol < 0:
      raise ValueError('atol and rtol must be greater equal than 0')
    self._task, self._metric = metric
    self._sign = 1 if mode == 'min' else -1
    self._patience, self._atol, self._rtol = patience, atol, rtol
    self._history = []

  def run(self, train_state, metrics_by_task) -> bool:
    """Returns whether none of the last values improved on the one before."""
    del train_state
    value = _watched_value(metrics_by_task, self._task, self._metric)
    if value is None:
      return False
    self._history = [*self._history, value][-self._patience :]
    return len(self._history) == self._patience and not any(
      self._sign * (old - new) > self._atol + self._rtol * abs(old)
      for old, new in zip(self._history, self._history[1:], strict=False)
    )


class TerminateOnNanAction(BaseAction):
  """Stops when a metric is NaN or infinite."""

  def __init__(self, task: str, metric: str = 'loss'):
    """Watches one metric of one task; the task of train steps is 'train'."""
    self._task, self._metric = task, metric

  def run(self, train_state, metrics_by_task) -> bool:
    """Returns whether the metric is NaN or infinite."""
    del train_state
    value = _watched_value(metrics_by_task, self._task, self._metric)
    return value is not None and not np.isfinite(value)
