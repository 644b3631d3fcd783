"""Writes metrics to TensorBoard and to JSON lines, in the background."""

import dataclasses
import json
import math
import os
import threading
import time
from collections.abc import Mapping
from concurrent import futures
from typing import Any

import clu.values
import jax
import numpy as np
from clu import metric_writers
from etils import epath

from t5x import metric_values
from t5x import metrics as metrics_lib
from t5x.timers import AsyncTimer

METRICS_FILE = 'metrics.jsonl'


def keep_lines_until(path: epath.Path, step: int) -> None:
  """Drops the lines of later steps, and a broken one, from a JSON lines file.

  Args:
    path: the file; it may be missing.
    step: the last step to keep.
  """
  if not path.exists():
    return
  lines = []
  for line in path.read_text().splitlines():
    try:
      record = json.loads(line)
    except json.JSONDecodeError:
      continue
    if record['step'] <= step:
      lines.append(line + '\n')
  temporary = path.with_suffix('.tmp')
  temporary.write_text(''.join(lines))
  os.replace(temporary, path)


class JsonLinesWriter:
  """Appends {'step': …, name: number, …} lines; each step appears once.

  A line is written with one write call, so a killed process leaves at most
  one broken line, the last, which `keep_until` drops.
  """

  def __init__(self, folder: str):
    self._path = epath.Path(folder) / METRICS_FILE

  def keep_until(self, step: int) -> None:
    """Drops the lines of later steps, which a resumed run writes again."""
    keep_lines_until(self._path, step)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends a line; NaN and infinities, which JSON lacks, become null."""
    numbers = {
      k: v if math.isfinite(v) else None for k, v in sorted(values.items())
    }
    self._path.parent.mkdir(parents=True, exist_ok=True)
    with open(self._path, 'a', buffering=1) as f:
      f.write(json.dumps({'step': step, **numbers}) + '\n')


@dataclasses.dataclass(frozen=True)
class Unfinished:
  """The part of a window of train steps before an interruption.

  Attributes:
    arrays: leaves of the metrics merged over its steps.
    steps: number of its steps.
    seconds: their duration.
  """

  arrays: list[np.ndarray]
  steps: int
  seconds: float


class MetricsManager:
  """Writes the metrics of one name ('train', 'training_eval/<task>').

  Only the first process writes. Summaries are fetched from the device and
  written by one background thread, in order, so that training does not wait.
  """

  def __init__(self, name: str, summary_dir: str | None = None, step: int = 0):
    """Opens the writers.

    Args:
      name: subfolder of summary_dir.
      summary_dir: the model folder; None: no files.
      step: the step that training resumes from; JSON lines of later steps are
        dropped.
    """
    self._name = name
    self._writes = jax.process_index() == 0
    self._lock = threading.Lock()
    self._pool = futures.ThreadPoolExecutor(1, thread_name_prefix=name)
    self._duration_timer = AsyncTimer(self._time)
    self._json = None
    self._writer = metric_writers.MultiWriter([])
    self.summary_dir = os.path.join(summary_dir, name) if summary_dir else None
    if self._writes and self.summary_dir:
      self._writer = self._create_writer(name, summary_dir)
      self._json = JsonLinesWriter(self.summary_dir)
      self._json.keep_until(step)

  def _create_writer(
    self, name: str, summary_dir: str
  ) -> metric_writers.MetricWriter:
    """Returns the writer of a process that writes, for summary_dir/name."""
    return metric_writers.SummaryWriter(os.path.join(summary_dir, name))

  def _time(self) -> float:
    """Returns the time in seconds."""
    return time.time()

  @property
  def summary_writer(self) -> metric_writers.MetricWriter:
    """The TensorBoard writer."""
    return self._writer

  def write_scalar(self, key: str, val: Any, step: int) -> None:
    """Writes one scalar to TensorBoard."""
    self.write_scalars(step, {key: val})

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Writes scalars to TensorBoard."""
    with self._lock:
      self._writer.write_scalars(
        int(step), {k: float(v) for k, v in scalars.items()}
      )

  def start_duration_timer(
    self, block_on: Any = (), *, elapsed: float = 0.0
  ) -> None:
    """Starts the clock of the next window of steps.

    Args:
      block_on: arrays; the clock starts once they are computed.
      elapsed: seconds that the window took before an interruption.
    """
    self._duration_timer.start(block_on, elapsed=elapsed)

  def duration(self) -> float:
    """Returns the seconds since the clock of the window was started."""
    return self._duration_timer.duration()

  def write_metrics_summary(
    self, metrics: metrics_lib.MetricsMap, step: int, num_steps: int
  ) -> futures.Future:
    """Computes and writes metrics in the background.

    Args:
      metrics: metrics merged over `num_steps` steps, on the device.
      step: the step after them.
      num_steps: number of merged steps.

    Returns:
      a future of {name: clu value}.
    """
    duration = self._duration_timer.stop(block_on=metrics)
    return self._pool.submit(
      self._summarize, metrics, int(step), num_steps, duration
    )

  def _summarize(self, metrics, step, num_steps, duration):
    metrics = jax.tree.map(np.asarray, metrics)  # waits for the last step
    metrics = metrics_lib.set_time_metrics_duration(metrics, duration.result())
    if metrics_lib.SKIPPED_STEPS in metrics:
      num_steps -= int(metrics[metrics_lib.SKIPPED_STEPS].total)
    metrics = metrics_lib.set_step_metrics_num_steps(metrics, num_steps)
    summary = {k: m.compute_value() for k, m in metrics.items()}
    with self._lock:
      metric_writers.write_values(self._writer, step, _writable(summary))
      if self._json:
        self._json.write(step, scalar_values(summary))
    return summary

  def flush(self) -> None:
    """Waits until everything is written."""
    self._pool.submit(lambda: None).result()
    with self._lock:
      self._writer.flush()

  def close(self) -> None:
    """Writes the remaining metrics and stops the thread."""
    self._pool.shutdown(wait=True)
    self._duration_timer.close()
    with self._lock:
      self._writer.close()


def _writable(summary: Mapping[str, Any]) -> dict[str, clu.values.Value]:
  """Returns the values that TensorBoard takes: numbers and clu's other types.

  An array as the value of a metric is none; it stays in the summary.
  """
  return {
    name: value
    for name, value in summary.items()
    if isinstance(value, clu.values.Value)
    and not isinstance(value, clu.values.Scalar)
  } | {
    name: clu.values.Scalar(number)
    for name, number in scalar_values(summary).items()
  }


def scalar_values(summary: Mapping[str, Any]) -> dict[str, float]:
  """Returns {name: float} of the numbers among clu values and others."""
  numbers = {}
  for name, value in summary.items():
    value = getattr(value, 'value', value)
    number = None if value is None else metric_values.number(value)
    if number is not None:
      numbers[name] = number
  return numbers
