"""The files of a result folder, and strict JSON.

A number that is not finite is written as null.
"""

import json
import math
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from selective_t5x.errors import UserError

RUN_FILE = 'run.json'
SUMMARY_FILE = 'summary.json'
COSTS_FILE = 'costs.json'
OPERATIVE_CONFIG_FILE = 'operative_config.gin'
METRICS_FILE = 'metrics.jsonl'
TRAIN_FOLDER = 'train'
EVAL_FOLDER = 'training_eval'


def read_json(path: str | os.PathLike) -> Any:
  """Reads a JSON file.

  Raises:
    UserError: it is not JSON.
  """
  try:
    return json.loads(epath.Path(path).read_text())
  except json.JSONDecodeError as error:
    raise UserError(f'{path}:{error.lineno}: not JSON ({error.msg})') from error


def read_json_lines(path: epath.Path) -> Iterator[Any]:
  """Yields what each line holds; a last one that is cut off is left out.

  Raises:
    UserError: another line is not JSON.
  """
  lines = path.read_text().splitlines()
  for number, line in enumerate(lines, 1):
    try:
      yield json.loads(line)
    except json.JSONDecodeError as error:
      if number == len(lines):
        return  # Being written, or cut off when its process was killed.
      raise UserError(f'{path}:{number}: not JSON ({error.msg})') from error


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes strict JSON in one step: a reader sees the old file or the new.

  NaN and infinities become null. The folder is made if missing.
  """
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # Of its own: two comparisons may end in one folder at the same time.
  temporary = path.parent / f'{path.name}.{os.getpid()}.tmp'
  text = json.dumps(_strict(value), indent=2, allow_nan=False) + '\n'
  try:
    temporary.write_text(text)
    temporary.replace(path)
  except OSError:  # The disk is full: leave no part of it.
    temporary.unlink(missing_ok=True)
    raise


def _strict(value):
  if isinstance(value, dict):
    return {key: _strict(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_strict(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
