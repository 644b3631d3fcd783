"""Opens checkpoints of both layouts."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from selective_t5x.errors import (
  UserError,
  absolute_path,
  did_you_mean,
  is_remote,
)
from t5x import (
  checkpoint_readers,
  checkpoints_utils,
  integrity,
  legacy_checkpoints,
)
from t5x.checkpoint_readers import SavedArray
from t5x.lazy_arrays import LazyThreadPoolArray

# (nested dict of the checkpoint, of the model's state, is_resuming=False) ->
# the former with the model's names
RestoreStateTransformationFn = Callable[..., Mapping[str, Any]]
Transformations = Sequence[RestoreStateTransformationFn]


class UnreadableCheckpointError(UserError):
  """A checkpoint is broken: a file is missing, truncated or changed."""


@contextlib.contextmanager
def reading(path: str):
  """Turns errors while a checkpoint is read into one line."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # Orbax and TensorStore raise many types
    why = f'{type(error).__name__}: {error}'.splitlines()[0][:200]
    raise UnreadableCheckpointError(f'{path} cannot be read: {why}') from error


def open_checkpoint(path: str):
  """Returns the reader for the layout of a checkpoint, which must be intact.

  Raises:
    UnreadableCheckpointError: a checksum does not match.
  """
  path = absolute_path(path)
  _check_files(path)
  if (epath.Path(path) / legacy_checkpoints.FILE).is_file():
    return legacy_checkpoints.LegacyReader(path)
  return checkpoint_readers.OrbaxReader(path)


def _check_files(path: str) -> None:
  """Raises UnreadableCheckpointError if a checksum does not match."""
  if is_remote(path):
    return
  problem = ''
  if jax.process_index() == 0:
    problem = integrity.problem(pathlib.Path(path))
  if jax.process_count() > 1:
    bad = multihost_utils.broadcast_one_to_all(np.array(bool(problem)))
    problem = problem or ('its checksums do not fit' if bad else '')
  if problem:
    raise UnreadableCheckpointError(f'{path} cannot be read: {problem}')


def lazy(leaf: Any, dtype: Any) -> LazyThreadPoolArray:
  """Returns an array that is read later, of a dtype; None: its own."""
  if not isinstance(leaf, SavedArray):
    return LazyThreadPoolArray(
      np.shape(leaf), dtype or np.asarray(leaf).dtype, lambda: leaf
    )
  return leaf if dtype is None else leaf.astype(dtype)


def resolve(path: str, step: int | None = None) -> str:
  """Returns the folder of the checkpoint that a path means.

  Args:
    path: a checkpoint, the file `checkpoint` in it, or a folder of checkpoints.
    step: the checkpoint in the folder; None: the latest one.

  Raises:
    UserError: there is no checkpoint.
  """
  here = epath.Path(path)
  if here.name == legacy_checkpoints.FILE and here.is_file():
    return os.path.dirname(os.fspath(path))
  steps = checkpoints_utils.all_steps(path)
  # TensorFlow puts a file `checkpoint` into a folder of checkpoints.
  if step is None and not steps:
    if any((here / name).exists() for name in ('state', 'checkpoint')):
      return path
  if step is None and steps or step in steps:
    step = steps[-1] if step is None else step
    return checkpoints_utils.get_checkpoint_dir(path, step)
  wanted = path
  if step is None:
    parent = os.path.dirname(os.path.abspath(path))
    steps = checkpoints_utils.all_steps(parent)
  else:
    wanted = checkpoints_utils.get_checkpoint_dir(path, step)
  names = [
    os.path.basename(checkpoints_utils.get_checkpoint_dir('', s)) for s in steps
  ]
  raise UserError(
    f'No checkpoint at {wanted}: expected a folder checkpoint_N, or one that '
    f'holds such folders{did_you_mean(os.path.basename(wanted), names)}'
  )
