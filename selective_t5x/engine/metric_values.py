"""Converts the metrics of tasks to values that seqio's loggers accept.

A metric that is not a MetricValue must be a number for seqio's loggers, or they
end the evaluation. Here texts and arrays are converted too, and JSON stays
strict: a number that is not finite is null.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import seqio
from absl import logging
from seqio import metrics

# A longer array is left to TensorBoard.
MOST_IN_JSON = 1000


def loggable(value: Any) -> metrics.MetricValue:
  """Converts the result of a metric function to a value for seqio's loggers.

  Args:
    value: a MetricValue, a number, a text, or an array of numbers of any shape.

  Returns:
    Scalar for one number, also in an array of size 1, with NaN for None; Text
    for a text and for any other type; Generic for several numbers. MetricValues
    other than Scalar are not changed.
  """
  if isinstance(value, metrics.MetricValue):
    if not isinstance(value, metrics.Scalar):
      return value
    value = value.value
  if value is None:
    return metrics.Scalar(math.nan)
  if isinstance(value, str | bytes):
    return metrics.Text(value)
  try:
    array = np.asarray(value)
  except (TypeError, ValueError):  # a list of rows of different lengths
    array = np.asarray(None)
  if array.dtype.kind == 'V' and isinstance(value, jax.Array):  # bfloat16
    array = np.asarray(value, np.float32)
  if array.dtype.kind not in 'fiub':
    return metrics.Text(f'{value}')
  if array.size == 1:
    return metrics.Scalar(array.item())
  return metrics.Generic(array, None)


def number(value: Any) -> float | None:
  """Returns a metric as a float if it is one number, else None."""
  value = loggable(value)
  return float(value.value) if isinstance(value, metrics.Scalar) else None


def strict(value: Any) -> Any:
  """Returns a value with None for each number in it that is not finite.

  Args:
    value: dicts, lists, arrays and JSON's types; arrays with numbers that are
      not finite become lists, other values are not changed.
  """
  if isinstance(value, Mapping):
    return {key: strict(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [strict(item) for item in value]
  if isinstance(value, jax.Array):
    value = np.asarray(value)
  if isinstance(value, np.ndarray | np.generic) and value.dtype.kind == 'f':
    return value if np.isfinite(value).all() else strict(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


class StrictEncoder(seqio.TensorAndNumpyEncoder):
  """seqio's JSON encoder, with null instead of Python's NaN."""

  def encode(self, o):
    """Returns the JSON text of a value."""
    return super().encode(strict(o))

  def iterencode(self, o, _one_shot=False):
    """Yields the JSON text of a value in parts."""
    return super().iterencode(strict(o), _one_shot)


class Logger:
  """A logger of seqio that takes any metric."""

  def __init__(self, logger: seqio.Logger):
    """Stores the logger, and makes one that writes JSON write it strictly."""
    self._logger = logger
    self._writes_json = isinstance(logger, seqio.JSONLogger)
    if self._writes_json:
      logger._json_encoder_cls = StrictEncoder

  def __call__(
    self,
    task_name: str,
    step: int | None,
    metrics: Mapping[str, Any],
    dataset: Any,
    inferences: Mapping[str, Sequence[Any]] | None,
    targets: Sequence[Any] | None,
  ) -> None:
    """Logs the metrics of a task, see seqio.Logger."""
    values = {name: loggable(value) for name, value in metrics.items()}
    if self._writes_json:
      values = _for_json(values)
    self._logger(
      task_name=task_name,
      step=step,
      metrics=values,
      dataset=dataset,
      inferences=inferences,
      targets=targets,
    )


def _for_json(values: Mapping[str, metrics.MetricValue]):
  """Returns the values that JSON can represent, each as a Scalar."""
  out = {}
  for name, value in values.items():
    if isinstance(value, metrics.Scalar):
      out[name] = value
    elif isinstance(value, metrics.Text):
      text = value.textdata
      if isinstance(text, bytes):
        text = text.decode('utf-8', 'replace')
      out[name] = metrics.Scalar(text)
    elif isinstance(value, metrics.Generic | metrics.Histogram):
      generic = isinstance(value, metrics.Generic)
      array = np.asarray(value.tensor if generic else value.values)
      if array.size <= MOST_IN_JSON:
        out[name] = metrics.Scalar(array.tolist())
    if name not in out:
      logging.info('%s is in the TensorBoard events alone', name)
  return out


def dumps(value: Any) -> str:
  """Returns one line of strict JSON, as seqio's encoder writes it."""
  return json.dumps(value, cls=StrictEncoder)
