"""Checkpoints in T5X's Orbax layout.

    model_dir/checkpoint_100/state/    {'target': params, 'state': {'step',
                                       'param_states'}}, arrays of any sharding
    model_dir/checkpoint_100/dataset/  the train iterator, a file a shard

Orbax writes a checkpoint beside its final place and renames it, so what is
there is whole. Parameters cross engines: T5X reads these and this reads T5X's.
"""

import dataclasses
import os
import re
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

from selective_t5x.errors import UserError, did_you_mean

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


def find_checkpoint(path: str) -> str:
  """Returns `path` where it is a checkpoint, else the latest one in it.

  Raises:
    UserError: there is none.
  """
  if (epath.Path(path) / 'state').is_dir():
    return path
  steps = all_steps(path)
  if steps:
    return checkpoint_path(path, steps[-1])
  parent = os.path.dirname(os.path.abspath(path))
  known = [f'{PREFIX}_{step}' for step in all_steps(parent)]
  raise UserError(
    f'No checkpoint at {path}: expected a folder checkpoint_N, or one that '
    f'holds such folders{did_you_mean(os.path.basename(path), known)}'
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
    args.item.restore(self._file(directory))
    return args.item


@ocp.args.register_with_handler(
  _IteratorHandler, for_save=True, for_restore=True
)
@dataclasses.dataclass
class _IteratorArgs(ocp.args.CheckpointArgs):
  item: dataset_iterator.DatasetIterator | None = None


class CheckpointManager:
  """Saves train states, and the train iterator with them, into a folder."""

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
      directory: the model folder, made where it is absent.
      partitioner: tells the data shard of this process.
      iterator: the train iterator to save along, or None.
      save_dtype: dtype of the saved parameters (not of the optimiser's state);
        None keeps theirs.
      keep: number of latest checkpoints to keep; None keeps all.
    """
    layout = partitioner.get_data_layout()
    self._iterator = iterator
    self._save_dtype = save_dtype
    handlers = {'state': ocp.PyTreeCheckpointHandler(use_ocdbt=True)}
    if iterator is not None:
      handlers['dataset'] = _IteratorHandler(
        layout.shard_id, layout.num_shards, layout.is_first_host_in_replica_set
      )
    self._manager = ocp.CheckpointManager(
      os.path.abspath(directory),
      item_handlers=handlers,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, step_prefix=PREFIX, cleanup_tmp_directories=True
      ),
    )

  def all_steps(self) -> Sequence[int]:
    """Returns the steps that have a checkpoint."""
    return sorted(self._manager.all_steps())

  def save(self, train_state) -> None:
    """Starts saving; the arrays are copied before this returns."""
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
    step = int(state_dict['state']['step'])
    self._manager.save(step, args=ocp.args.Composite(**items), force=True)
    logging.info('Saving checkpoint_%d', step)

  def wait_until_finished(self) -> None:
    """Blocks until everything saved is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for saves to finish and stops the threads."""
    self._manager.close()


def restore(
  path: str,
  train_state_shape,
  train_state_axes,
  partitioner,
  dtype: str | None = None,
  iterator: dataset_iterator.DatasetIterator | None = None,
):
  """Restores a train state, and the iterator with it, from a checkpoint.

  Args:
    path: a checkpoint folder.
    train_state_shape: the train state with jax.ShapeDtypeStruct leaves: what is
      read. An InferenceState reads the parameters and the step alone.
    train_state_axes: the same with PartitionSpec or None: how it is split.
    partitioner: gives the mesh.
    dtype: dtype of the parameters; None keeps the checkpoint's.
    iterator: a train iterator to put where it was when the checkpoint was made.

  Returns:
    a train state of jax.Array.

  Raises:
    UserError: the checkpoint is of another model: names and shapes that differ.
  """
  path = os.path.abspath(path)
  state_path = os.path.join(path, 'state')
  if not os.path.isdir(state_path):
    raise UserError(f'No checkpoint at {path}: it has no folder "state"')
  wanted = train_state_shape.state_dict()
  handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True)
  with ocp.Checkpointer(handler) as checkpointer:
    saved = checkpointer.metadata(state_path).item_metadata.tree
    _check_same_model(path, wanted, saved)
    shardings = partitioner.shardings(train_state_axes.state_dict())

    def restore_args(key):
      return jax.tree.map(
        lambda x, sharding: ocp.ArrayRestoreArgs(
          sharding=sharding,
          global_shape=x.shape,
          dtype=jnp.dtype(dtype) if dtype and key == 'target' else None,
        ),
        wanted[key],
        _broadcast(shardings[key], wanted[key]),
      )

    state_dict = checkpointer.restore(
      state_path,
      args=ocp.args.PyTreeRestore(
        item=wanted,
        restore_args={key: restore_args(key) for key in wanted},
        partial_restore=True,
      ),
    )
  if iterator is not None:
    layout = partitioner.get_data_layout()
    files = _IteratorHandler(layout.shard_id, layout.num_shards, False)
    folder = epath.Path(path) / 'dataset'
    if not folder.is_dir():
      raise UserError(
        f'{path} holds no train iterator: it was saved with '
        'SaveCheckpointConfig.save_dataset = False, so the order of the data '
        'cannot go on where it was'
      )
    files.restore(folder, _IteratorArgs(iterator))
  return train_state_shape.restore_state(state_dict)


def _broadcast(prefix, tree):
  """Repeats the leaves of a prefix tree over the whole tree."""
  return jax.tree.map(lambda p, t: jax.tree.map(lambda _: p, t), prefix, tree)


def _check_same_model(
  path: str, wanted: Mapping[str, Any], saved: Mapping[str, Any]
) -> None:
  """Raises UserError where the checkpoint's arrays are not the wanted ones."""
  wanted = traverse_util.flatten_dict(dict(wanted), sep='/')
  saved = traverse_util.flatten_dict(dict(saved), sep='/')
  # Parameters first: the optimiser's copies of them say the same again.
  missing = sorted(set(wanted) - set(saved), key=lambda n: (n[0] != 't', n))
  extra = sorted(
    name for name in set(saved) - set(wanted) if name.startswith('target/')
  )
  shapes = [
    f'{name} is {tuple(saved[name].shape)}, expected {tuple(x.shape)}'
    for name, x in sorted(wanted.items())
    if name in saved and tuple(saved[name].shape) != np.shape(x)
  ]

  def some(names):
    return ', '.join(names[:3]) + (' …' if len(names) > 3 else '')

  problems = []
  if missing:
    problems.append(f'without {some(missing)}')
  if extra:
    problems.append(f'with {some(extra)}, unknown to the model')
  if shapes:
    problems.append(some(shapes))
  if problems:
    raise UserError(
      f'{path} is a checkpoint of another model: {"; ".join(problems)}'
    )
