"""Opens checkpoints of both layouts, with or without a model for them."""

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
  state_utils,
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


def load_t5x_checkpoint(
  path: str,
  step: int | None = None,
  state_transformation_fns: Transformations = (),
  remap: bool = True,
  restore_dtype: Any = None,
  lazy_parameters: bool = False,
) -> dict[str, Any]:
  """Returns the nested dict of all arrays of a checkpoint, without a model.

  Args:
    path: a checkpoint of either layout, its file `checkpoint`, or a folder of
      checkpoints.
    step: the checkpoint in the folder; None: the latest one.
    state_transformation_fns: rename arrays; their second argument is {}.
    remap: whether these functions are called.
    restore_dtype: dtype of the parameters; None: as saved.
    lazy_parameters: whether the arrays are `LazyArray`s, read by their `get`.

  Raises:
    UserError: there is no checkpoint, or it cannot be read.
  """
  path = resolve(path, step)
  reader = open_checkpoint(path)
  with reading(path):
    tree = state_utils.unflatten_state_dict(reader.arrays())
  for transform in state_transformation_fns if remap else ():
    tree = transform(tree, {})
  flat = {
    name: lazy(leaf, restore_dtype if name.startswith('target/') else None)
    for name, leaf in state_utils.flatten_state_dict(tree).items()
  }
  if not lazy_parameters:
    with reading(path):
      read = reader.values({a.name for a in flat.values() if _is_saved(a)})
      flat = {
        name: np.asarray(read[leaf.name], leaf.dtype)
        if _is_saved(leaf)
        else leaf.get()
        for name, leaf in flat.items()
      }
  return state_utils.unflatten_state_dict(flat)


def _is_saved(leaf: Any) -> bool:
  return isinstance(leaf, SavedArray)


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
