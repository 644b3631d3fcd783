"""Writes evaluation.json, the metrics of an evaluation run, and prints them."""

import collections
import json
import math
import os
import textwrap
from typing import Any

from etils import epath

from selective_t5x.runs.files import (
  EVAL_FOLDER,
  METRICS_FILE,
  read_json,
  read_json_lines,
  write_json,
)
from selective_t5x.runs.losses import Row
from selective_t5x.runs.metrics import read_events, read_metrics

EVALUATION_FILE = 'evaluation.json'
TASK_METRICS_FOLDER = 'inference_eval'
_TASK_METRICS = f'{TASK_METRICS_FOLDER}/*-metrics.jsonl'
# {path: bytes}
State = dict[str, int]
_LONGEST = 60  # Characters of a metric that is not a number.


def state(output_dir: str | os.PathLike) -> State:
  """Returns the size of every metrics file in a folder."""
  folder = epath.Path(output_dir)
  patterns = (_TASK_METRICS, f'{EVAL_FOLDER}/*/*')
  files = [file for pattern in patterns for file in folder.glob(pattern)]
  return {os.fspath(file): file.stat().length for file in files}


def write(
  output_dir: str | os.PathLike, before: State | None = None
) -> dict[str, dict[str, Any]]:
  """Writes evaluation.json, the metrics of an evaluation run; returns them.

  Metrics of other tasks from earlier runs stay in the file.

  Args:
    output_dir: the folder of the run.
    before: the folder's `state` before the run; None: it was empty.

  Returns:
    {task: {'step': …, metric: value}} of this run: a task's own metrics, as
    last written by seqio's JSON logger, and the metrics with teacher forcing as
    'training_eval/<task>'.
  """
  output_dir = epath.Path(output_dir)
  now = state(output_dir)
  changed = {
    epath.Path(file) for file in now if (before or {}).get(file) != now[file]
  }
  tasks = {}
  for file in sorted(changed):
    if file.parent.name == TASK_METRICS_FOLDER:
      rows = list(read_json_lines(file))
      if rows:
        tasks[file.name.removesuffix('-metrics.jsonl')] = rows[-1]
  for folder in sorted({file.parent for file in changed}):
    if folder.parent.name == EVAL_FOLDER:
      files = [file for file in changed if file.parent == folder]
      row = _last_written(folder, files)
      if row is None:
        continue
      tasks[f'{EVAL_FOLDER}/{folder.name}'] = {
        k: v for k, v in row.items() if not k.startswith('timing/')
      }
  file = output_dir / EVALUATION_FILE
  earlier = read_json(file) if before and file.exists() else {}
  write_json(file, dict(sorted({**earlier, **tasks}.items())))
  return tasks


def _last_written(folder, changed) -> Row | None:
  """Returns the metrics of the last evaluated step."""
  lines = folder / METRICS_FILE
  written = (
    read_json_lines(lines)
    if lines in changed
    else (row for file in sorted(changed) for row in read_events(file))
  )
  last = collections.deque((row['step'] for row in written), maxlen=1)
  rows = read_metrics(folder) if last else ()
  return next((row for row in rows if row['step'] == last[0]), None)


def text(tasks: dict[str, dict[str, Any]]) -> str:
  """Returns one line per task with its metrics."""
  lines = []
  for task, row in tasks.items():
    forced = task.startswith(f'{EVAL_FOLDER}/')
    names = ('loss', 'accuracy') if forced else [k for k in row if k != 'step']
    values = [f'{name} {_as_text(row[name])}' for name in names if name in row]
    lines.append(f'{task}: {", ".join(values)}')
  return '\n'.join(lines)


def _as_text(value: Any) -> str:
  """Formats a metric in a few characters."""
  if value is None:
    return 'not finite'
  if isinstance(value, int | float):
    return f'{value:.5g}' if math.isfinite(value) else 'not finite'
  text = value if isinstance(value, str) else json.dumps(value)
  return textwrap.shorten(text, _LONGEST, placeholder=' ...')
