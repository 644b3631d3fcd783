"""evaluation.json: what an evaluation run found, and lines that say it."""

import json
import math
import os
import textwrap
from typing import Any

from etils import epath

from selective_t5x.runs import results

EVALUATION_FILE = 'evaluation.json'
TASK_METRICS_FOLDER = 'inference_eval'
_LONGEST = 60  # Characters of a metric that is no number.


def write(output_dir: str | os.PathLike) -> dict[str, dict[str, Any]]:
  """Writes evaluation.json, the metrics of an evaluation run; returns them.

  Returns:
    {task: {'step': …, metric: value}}: what seqio's JSON logger wrote of the
    tasks' own metrics, and teacher forcing under 'training_eval/<task>'.
  """
  output_dir = epath.Path(output_dir)
  tasks = {}
  for path in sorted(output_dir.glob(f'{TASK_METRICS_FOLDER}/*-metrics.jsonl')):
    rows = list(results.read_json_lines(path))
    if rows:
      tasks[path.name.removesuffix('-metrics.jsonl')] = rows[-1]
  for folder in sorted(output_dir.glob(f'{results.EVAL_FOLDER}/*')):
    row = results.read_metrics(folder)[-1]
    tasks[f'{results.EVAL_FOLDER}/{folder.name}'] = {
      k: v for k, v in row.items() if not k.startswith('timing/')
    }
  results.write_json(output_dir / EVALUATION_FILE, tasks)
  return tasks


def text(tasks: dict[str, dict[str, Any]]) -> str:
  """Returns a line for each task: its metrics, and those of teacher forcing."""
  lines = []
  for task, row in tasks.items():
    forced = task.startswith(f'{results.EVAL_FOLDER}/')
    names = ('loss', 'accuracy') if forced else [k for k in row if k != 'step']
    values = [f'{name} {_shown(row[name])}' for name in names if name in row]
    lines.append(f'{task}: {", ".join(values)}')
  return '\n'.join(lines)


def _shown(value: Any) -> str:
  """Returns a metric in a few characters."""
  if value is None:
    return 'not finite'
  if isinstance(value, int | float):
    return f'{value:.5g}' if math.isfinite(value) else 'not finite'
  text = value if isinstance(value, str) else json.dumps(value)
  return textwrap.shorten(text, _LONGEST, placeholder=' ...')
