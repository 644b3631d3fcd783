"""Writes metrics to TensorBoard and to JSON lines, in the background."""

import json
import math
import os
import threading
import time
from collections.abc import Mapping
from concurrent import futures
from typing import Any

import jax
import numpy as np
from clu import metric_writers
from etils import epath

from t5x import metrics as metrics_lib

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
    self._started = None
    self._ended = 0.0
    self._json = None
    self._writer = metric_writers.MultiWriter([])
    self.summary_dir = os.path.join(summary_dir, name) if summary_dir else None
    if self._writes and self.summary_dir:
      self._writer = metric_writers.SummaryWriter(self.summary_dir)
      self._json = JsonLinesWriter(self.summary_dir)
      self._json.keep_until(step)

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

  def start_duration_timer(self, elapsed: float = 0.0) -> float:
    """Starts the clock of the next window of steps, and returns its start.

    Args:
      elapsed: seconds that the window took before an interruption.
    """
    self._started = time.time() - elapsed
    return self._started

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
    started, self._started = self._started, None
    if started is None:
      raise ValueError('start_duration_timer was not called')
    return self._pool.submit(
      self._summarize, metrics, int(step), num_steps, started
    )

  def _summarize(self, metrics, step, num_steps, started):
    metrics = jax.tree.map(np.asarray, metrics)  # waits for the last step
    # Steps are dispatched ahead: the device may have begun later, when it had
    # finished the previous window.
    started, self._ended = max(started, self._ended), time.time()
    metrics = metrics_lib.set_time_metrics_duration(
      metrics, self._ended - started
    )
    if metrics_lib.SKIPPED_STEPS in metrics:
      num_steps -= int(metrics[metrics_lib.SKIPPED_STEPS].total)
    metrics = metrics_lib.set_step_metrics_num_steps(metrics, num_steps)
    summary = {k: m.compute_value() for k, m in metrics.items()}
    with self._lock:
      metric_writers.write_values(self._writer, step, summary)
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
    with self._lock:
      self._writer.close()


def scalar_values(summary: Mapping[str, Any]) -> dict[str, float]:
  """Returns {name: float} of the scalars among clu values."""
  return {
    k: float(v.value)
    for k, v in summary.items()
    if np.ndim(getattr(v, 'value', None)) == 0 and hasattr(v, 'value')
  }
