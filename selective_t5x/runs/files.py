"""Names of the files in a result folder, and strict JSON.

Numbers that are not finite are written as null.
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
  """Yields the value of each line; an incomplete last line is left out.

  Raises:
    UserError: another line is not JSON.
  """
  lines = path.read_text().splitlines()
  for number, line in enumerate(lines, 1):
    try:
      yield json.loads(line)
    except json.JSONDecodeError as error:
      if number == len(lines):
        return  # A process is writing it, or was killed while it did.
      raise UserError(f'{path}:{number}: not JSON ({error.msg})') from error


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes strict JSON atomically: a reader sees the old or the new file.

  NaN and infinities become null. A missing folder is created.
  """
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # The name has the process id: two comparisons may write here at once.
  temporary = path.parent / f'{path.name}.{os.getpid()}.tmp'
  text = json.dumps(_strict(value), indent=2, allow_nan=False) + '\n'
  try:
    temporary.write_text(text)
    temporary.replace(path)
  except OSError:  # For instance, the disk is full: leave no partial file.
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
