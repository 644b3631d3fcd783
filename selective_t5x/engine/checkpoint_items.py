"""What a checkpoint has beside the train state.

checkpoint_100/dataset/  the position in the training data, a file a shard,
                         without any data
checkpoint_100/window/   the unfinished window of metrics of a run that was
                         interrupted within it
"""

import dataclasses
import os
from collections.abc import Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp
from clu.data import dataset_iterator
from etils import epath
from jax.experimental import multihost_utils

from selective_t5x.errors import UserError

_WINDOW_FILE = 'window.npz'


@dataclasses.dataclass
class IteratorHandler(ocp.CheckpointHandler):
  """Saves and restores a clu DatasetIterator; one file for each data shard."""

  shard_id: int
  num_shards: int
  writes: bool

  def _file(self, directory: epath.Path) -> str:
    if jax.process_count() > 1:
      directory /= f'process_{jax.process_index()}-of-{jax.process_count()}'
      directory.mkdir(parents=True, exist_ok=True)
    name = f'train_ds-{self.shard_id:03}-of-{self.num_shards:03}'
    return os.fspath(directory / name)

  def save(self, directory: epath.Path, args: 'IteratorArgs') -> None:
    """Writes the position."""
    if self.writes:
      args.item.save(self._file(directory))

  def restore(self, directory: epath.Path, args: 'IteratorArgs'):
    """Moves the iterator to the position; returns it."""
    args.item.restore(self._file(directory), args.step)
    return args.item


@ocp.args.register_with_handler(
  IteratorHandler, for_save=True, for_restore=True
)
@dataclasses.dataclass
class IteratorArgs(ocp.args.CheckpointArgs):
  """The iterator, and for restoring the step of the checkpoint."""

  item: dataset_iterator.DatasetIterator | None = None
  step: int | None = None


class WindowHandler(ocp.CheckpointHandler):
  """Saves the arrays of an unfinished window of metrics, by one process."""

  def save(self, directory: epath.Path, args: 'WindowArgs') -> None:
    """Writes the arrays."""
    if jax.process_index() == 0:
      with (directory / _WINDOW_FILE).open('wb') as file:
        np.savez(file, *args.arrays)

  def restore(self, directory: epath.Path, args: 'WindowArgs'):
    """Returns the arrays."""
    del args
    return _read_window(directory)


@ocp.args.register_with_handler(WindowHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class WindowArgs(ocp.args.CheckpointArgs):
  """The arrays of the window."""

  arrays: Sequence[np.ndarray] = ()


def restore_window(path: str) -> list[np.ndarray]:
  """Returns the arrays of the unfinished window; an empty list without one."""
  return _read_window(epath.Path(path) / 'window')


def _read_window(folder: epath.Path) -> list[np.ndarray]:
  file = folder / _WINDOW_FILE
  if not file.exists():
    return []
  with file.open('rb') as opened, np.load(opened, allow_pickle=False) as saved:
    return [saved[f'arr_{i}'] for i in range(len(saved.files))]


def restore_iterator(
  path: str,
  partitioner,
  iterator: dataset_iterator.DatasetIterator,
  step: int,
) -> None:
  """Moves a train iterator to its position in a checkpoint.

  Args:
    path: path of the checkpoint.
    partitioner: gives the data shard of this process.
    iterator: the iterator to move.
    step: step of the checkpoint.

  Raises:
    UserError: the checkpoint has no iterator, or one of other data.
  """
  folder = epath.Path(path) / 'dataset'
  if not folder.is_dir():
    raise UserError(
      f'{path} holds no train iterator: it was saved with '
      'SaveCheckpointConfig.save_dataset = False, so the training data cannot '
      'be resumed at its position'
    )
  layout = partitioner.get_data_layout()
  files = IteratorHandler(layout.shard_id, layout.num_shards, False)
  error = None
  try:
    files.restore(folder, IteratorArgs(iterator, step))
  except UserError as refusal:
    error = UserError(f'{path}: {refusal}')
  except Exception as other:
    error = other
  # Either all processes continue, or none does.
  if jax.process_count() > 1:
    severity = {type(None): 0, UserError: 1}.get(type(error), 2)
    worst = int(np.max(multihost_utils.process_allgather(np.array(severity))))
    if worst > severity:
      problem = 'another process cannot resume its training data from it'
      error = (UserError if worst == 1 else OSError)(f'{path}: {problem}')
  if error is not None:
    raise error
