"""evaluation.json: what an evaluation run found, and lines that say it."""

import os
from typing import Any

from etils import epath

from selective_t5x import results

EVALUATION_FILE = 'evaluation.json'
TASK_METRICS_FOLDER = 'inference_eval'


def write(output_dir: str | os.PathLike) -> dict[str, dict[str, Any]]:
  """Writes evaluation.json, the metrics of an evaluation run; returns them.

  Returns:
    {task: {'step': …, metric: value}}: what seqio's JSON logger wrote of the
    tasks' own metrics, and teacher forcing under 'training_eval/<task>'.
  """
  output_dir = epath.Path(output_dir)
  tasks = {}
  for path in sorted(output_dir.glob(f'{TASK_METRICS_FOLDER}/*-metrics.jsonl')):
    *_, last = results.read_json_lines(path)
    tasks[path.name.removesuffix('-metrics.jsonl')] = last
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
    values = [f'{k} {row[k]:.5g}' for k in names if row.get(k) is not None]
    lines.append(f'{task}: {", ".join(values)}')
  return '\n'.join(lines)
