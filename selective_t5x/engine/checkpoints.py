"""Checkpoints in T5X's Orbax layout.

    model_dir/checkpoint_100/state/    {'target': params, 'state': {'step',
                                       'param_states'}}, arrays of any sharding
    model_dir/checkpoint_100/dataset/  the position in the training data, a file
                                       a shard, without any data
    model_dir/checkpoint_100/window/   the unfinished window of metrics of a run
                                       that was interrupted within it
    model_dir/checkpoint_100/checksums.json

Orbax writes a checkpoint beside its final place and renames it, so a checkpoint
in place is complete. Both engines read each other's parameters.
"""

import dataclasses
import os
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from clu.data import dataset_iterator
from etils import epath
from flax import traverse_util
from jax.experimental import multihost_utils

from selective_t5x.errors import UserError, did_you_mean
from t5x import integrity

PREFIX = 'checkpoint'
_STEP_FOLDER = re.compile(rf'{PREFIX}_(\d+)')


def all_steps(checkpoints_dir: str) -> Sequence[int]:
  """Returns the steps of the complete checkpoints in a folder, in order."""
  folder = epath.Path(checkpoints_dir)
  if not folder.is_dir():
    return []
  names = (_STEP_FOLDER.fullmatch(path.name) for path in folder.iterdir())
  return sorted(int(name[1]) for name in names if name)


def checkpoint_path(checkpoints_dir: str, step: int) -> str:
  """Returns the folder of the checkpoint of one step."""
  return os.path.join(checkpoints_dir, f'{PREFIX}_{step}')


def put_aside(path: str) -> str:
  """Renames a broken checkpoint, so that its step can be saved again."""
  folder, name = os.path.split(path)
  aside = os.path.join(folder, f'broken_{name}')
  if jax.process_index() == 0:
    if os.path.exists(aside):
      shutil.rmtree(aside)  # This step has broken twice.
    epath.Path(path).rename(aside)
  multihost_utils.sync_global_devices(aside)
  return aside


def find_checkpoint(path: str) -> str:
  """Returns `path` if it is a checkpoint, else the latest one in it.

  Raises:
    UserError: there is no checkpoint.
  """
  if any(
    (epath.Path(path) / name).exists() for name in ('state', 'checkpoint')
  ):
    return path
  if epath.Path(path + '.index').exists():
    raise UserError(
      f'{path} is a TensorFlow checkpoint, which only the real T5X reads: '
      'expected a folder checkpoint_N'
    )
  steps = all_steps(path)
  if steps:
    return checkpoint_path(path, steps[-1])
  parent = os.path.dirname(os.path.abspath(path))
  names = [f'{PREFIX}_{step}' for step in all_steps(parent)]
  raise UserError(
    f'No checkpoint at {path}: expected a folder checkpoint_N, or one that '
    f'holds such folders{did_you_mean(os.path.basename(path), names)}'
  )


@dataclasses.dataclass
class _IteratorHandler(ocp.CheckpointHandler):
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

  def save(self, directory: epath.Path, args: '_IteratorArgs') -> None:
    if self.writes:
      args.item.save(self._file(directory))

  def restore(self, directory: epath.Path, args: '_IteratorArgs'):
    args.item.restore(self._file(directory), args.step)
    return args.item


@ocp.args.register_with_handler(
  _IteratorHandler, for_save=True, for_restore=True
)
@dataclasses.dataclass
class _IteratorArgs(ocp.args.CheckpointArgs):
  item: dataset_iterator.DatasetIterator | None = None
  step: int | None = None


_WINDOW_FILE = 'window.npz'


class _WindowHandler(ocp.CheckpointHandler):
  """Saves the arrays of an unfinished window of metrics, by one process."""

  def save(self, directory: epath.Path, args: '_WindowArgs') -> None:
    if jax.process_index() == 0:
      with (directory / _WINDOW_FILE).open('wb') as file:
        np.savez(file, *args.arrays)

  def restore(self, directory: epath.Path, args: '_WindowArgs'):
    del args
    return _read_window(directory)


@ocp.args.register_with_handler(_WindowHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class _WindowArgs(ocp.args.CheckpointArgs):
  arrays: Sequence[np.ndarray] = ()


class CheckpointManager:
  """Saves train states, with the train iterator, into a folder."""

  def __init__(
    self,
    directory: str,
    partitioner,
    iterator: dataset_iterator.DatasetIterator | None = None,
    save_dtype: str | None = None,
    keep: int | None = None,
  ):
    """Opens the folder and removes what an interrupted save left there.

    Args:
      directory: the model folder; created if it is missing.
      partitioner: gives the data shard of this process.
      iterator: the train iterator to save too, or None.
      save_dtype: dtype of the saved parameters (not of the optimiser's state);
        None: their own.
      keep: number of latest checkpoints to keep; None: all.
    """
    layout = partitioner.get_data_layout()
    self._iterator = iterator
    self._save_dtype = save_dtype
    handlers = {
      'state': ocp.PyTreeCheckpointHandler(use_ocdbt=True),
      'window': _WindowHandler(),
    }
    if iterator is not None:
      handlers['dataset'] = _IteratorHandler(
        layout.shard_id, layout.num_shards, layout.is_first_host_in_replica_set
      )
    self._directory = pathlib.Path(os.path.abspath(directory))
    self._saving = None  # the step
    self._manager = ocp.CheckpointManager(
      self._directory,
      item_handlers=handlers,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        step_prefix=PREFIX,
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(
          post_finalization_callback=self._write_checksums
        ),
      ),
    )

  def _write_checksums(self) -> None:
    """Writes checksums; Orbax calls it before it moves a written checkpoint."""
    if jax.process_index() == 0:
      for folder in self._directory.glob(
        f'{PREFIX}_{self._saving}.orbax-checkpoint-tmp*'
      ):
        integrity.write(folder)

  def remove_remains(self) -> None:
    """Removes the remains of a failed save, since the disk may be full."""
    if jax.process_index() == 0:
      for folder in self._directory.glob(f'{PREFIX}_*.orbax-checkpoint-tmp*'):
        shutil.rmtree(folder, ignore_errors=True)

  def all_steps(self) -> Sequence[int]:
    """Returns the steps that have a checkpoint."""
    return sorted(self._manager.all_steps())

  def save(self, train_state, window: Sequence[np.ndarray] = ()) -> None:
    """Starts saving; the arrays are copied before this returns.

    Args:
      train_state: the state to save.
      window: arrays of an unfinished window of metrics, see `restore_window`.
    """
    state_dict = train_state.state_dict()
    dtype = jnp.dtype(self._save_dtype) if self._save_dtype else None
    save_args = {
      key: jax.tree.map(
        lambda _: ocp.SaveArgs(dtype=dtype if key == 'target' else None),  # noqa: B023
        tree,
      )
      for key, tree in state_dict.items()
    }
    items = {'state': ocp.args.PyTreeSave(state_dict, save_args=save_args)}
    if self._iterator is not None:
      items['dataset'] = _IteratorArgs(self._iterator)
    if window:
      items['window'] = _WindowArgs(window)
    step = int(state_dict['state']['step'])
    self._manager.wait_until_finished()
    self._saving = step
    self._manager.save(step, args=ocp.args.Composite(**items), force=True)
    logging.info('Saving checkpoint_%d', step)

  def wait_until_finished(self) -> None:
    """Blocks until everything saved is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for saves to finish and stops the threads."""
    self._manager.close()


@dataclasses.dataclass(frozen=True)
class SavedArray:
  """An array of a checkpoint, not read yet.

  Attributes:
    name: its path in the checkpoint joined by '/'.
    shape: the shape of the whole array.
  """

  name: str
  shape: tuple[int, ...]


# {name in the checkpoint: (its sharding, its dtype or None: as saved)}
ReadRequests = Mapping[str, tuple[jax.sharding.Sharding, Any]]


class OrbaxReader:
  """Reads the arrays of a checkpoint in Orbax layout."""

  def __init__(self, path: str):
    self._path = os.path.join(path, 'state')
    self._handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True)

  def arrays(self) -> dict[str, SavedArray]:
    """Returns {name: array} of all arrays in the checkpoint."""
    with ocp.Checkpointer(self._handler) as checkpointer:
      metadata = checkpointer.metadata(self._path).item_metadata
    if metadata is None:
      raise ValueError(f'{self._path} has no metadata that can be read')
    tree = metadata.tree
    return {
      name: SavedArray(name, tuple(array.shape))
      for name, array in traverse_util.flatten_dict(dict(tree), sep='/').items()
      if array is not None  # the state of a frozen parameter
    }

  def read(self, requests: ReadRequests) -> dict[str, jax.Array]:
    """Returns {name: array} of the requested arrays."""
    if not requests:
      return {}
    restore_args = {
      name: ocp.ArrayRestoreArgs(
        sharding=sharding, dtype=None if dtype is None else jnp.dtype(dtype)
      )
      for name, (sharding, dtype) in requests.items()
    }
    nested = traverse_util.unflatten_dict(restore_args, sep='/')
    with ocp.Checkpointer(self._handler) as checkpointer:
      tree = checkpointer.restore(
        self._path,
        args=ocp.args.PyTreeRestore(
          item=jax.tree.map(lambda _: 0, nested),
          restore_args=nested,
          partial_restore=True,
        ),
      )
    return traverse_util.flatten_dict(tree, sep='/')


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
      'SaveCheckpointConfig.save_dataset = False, so the order of the data '
      'cannot go on where it was'
    )
  layout = partitioner.get_data_layout()
  files = _IteratorHandler(layout.shard_id, layout.num_shards, False)
  error = None
  try:
    files.restore(folder, _IteratorArgs(iterator, step))
  except UserError as refusal:
    error = UserError(f'{path}: {refusal}')
  except Exception as other:
    error = other
  # Either all processes continue, or none does.
  if jax.process_count() > 1:
    severity = {type(None): 0, UserError: 1}.get(type(error), 2)
    worst = int(np.max(multihost_utils.process_allgather(np.array(severity))))
    if worst > severity:
      problem = 'of another process the training data cannot go on there'
      error = (UserError if worst == 1 else OSError)(f'{path}: {problem}')
  if error is not None:
    raise error
