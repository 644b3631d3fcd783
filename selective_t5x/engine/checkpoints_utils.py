"""The names of checkpoints: which steps a model folder has."""

import os
import re
from collections.abc import Sequence

import gin
from etils import epath


@gin.configurable
def get_checkpoint_prefix(prefix: str = 'checkpoint') -> str:
  """Returns what the names of checkpoints begin with."""
  return prefix


def all_steps(checkpoints_dir: str) -> Sequence[int]:
  """Returns the steps of the complete checkpoints in a folder, in order."""
  folder = epath.Path(checkpoints_dir)
  if not folder.is_dir():
    return []
  names = (re.fullmatch(r'checkpoint_(\d+)', p.name) for p in folder.iterdir())
  return sorted(int(name[1]) for name in names if name)


def all_dataset_checkpoint_steps(checkpoints_dir: str) -> Sequence[int]:
  """Returns the steps of the checkpoints with a position in the data."""
  folders = {
    step: epath.Path(get_checkpoint_dir(checkpoints_dir, step))
    for step in all_steps(checkpoints_dir)
  }
  # Of Orbax's layout, and of T5X's older one.
  return [
    s
    for s, f in folders.items()
    if any([(f / 'dataset').exists(), *f.glob('train_ds-*')])
  ]


def latest_step(checkpoints_dir: str) -> int | None:
  """Returns the step of the latest checkpoint, or None without any."""
  return max(all_steps(checkpoints_dir), default=None)


def get_checkpoint_dir(
  checkpoints_dir: str, step: int, step_format_fixed_length: int | None = None
) -> str:
  """Returns the folder of a step, whose name may have leading zeros."""
  digits = f'{step:0{step_format_fixed_length or 0}d}'
  return os.path.join(checkpoints_dir, f'{get_checkpoint_prefix()}_{digits}')


def get_step_from_checkpoint_dir(checkpoints_dir: str) -> tuple[str, int]:
  """Returns the parent and the step of a checkpoint's folder.

  Raises:
    ValueError: the name is not that of a checkpoint.
  """
  parent, name = os.path.split(os.fspath(checkpoints_dir).rstrip('/'))
  prefix = get_checkpoint_prefix()
  step = re.fullmatch(rf'{re.escape(prefix)}_(\d+)', name)
  if not step:
    raise ValueError(f'{checkpoints_dir} is no checkpoint: expected {prefix}_N')
  return parent, int(step[1])
