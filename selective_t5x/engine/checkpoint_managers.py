"""Saves train states in T5X's Orbax layout, with the train iterator.

    model_dir/checkpoint_100/state/    {'target': params, 'state': {'step',
                                       'param_states'}}, arrays of any sharding
    model_dir/checkpoint_100/dataset/, window/    see `checkpoint_items`
    model_dir/checkpoint_100/checksums.json

Orbax writes a checkpoint beside its final place and renames it, so a checkpoint
in place is complete. Both engines read each other's parameters.
"""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from clu.data import dataset_iterator
from etils import epath
from jax.sharding import PartitionSpec

from t5x import (
  checkpoint_items,
  checkpoints_utils,
  integrity,
  opening,
  restoring,
  state_utils,
)
from t5x.lazy_arrays import materialized

PREFIX = 'checkpoint'
# The file in a checkpoint that must not be removed, see `checkpoint_utils`.
PIN = 'PINNED'
PyTree = Any
# (the state's nested dict, that of its ParameterInfos) -> both as saved
SaveStateTransformationFn = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]


@dataclasses.dataclass
class ParameterInfo:
  """An array of a train state: its path, shape and partitioning."""

  name: str
  shape: tuple[int, ...]
  mesh_axes: PartitionSpec | None

  @property
  def axes(self) -> PartitionSpec | None:
    """The partitioning, by the name that T5X's Checkpointer gives it."""
    return self.mesh_axes


class _Manager(ocp.CheckpointManager):
  """Orbax's manager; it removes neither pinned nor the latest checkpoints."""

  def _get_old_steps_to_remove(self) -> list[int]:
    latest = self.latest_step()

    def stays(step):
      path = checkpoints_utils.get_checkpoint_dir(self.directory, step)
      return step == latest or (epath.Path(path) / PIN).exists()

    return [s for s in super()._get_old_steps_to_remove() if not stays(s)]


@gin.configurable
class OrbaxCheckpointManagerInterface:
  """Saves train states, with the train iterator, into a folder.

  Attributes:
    unfinished_window: arrays of metrics that are saved too, see
      `checkpoint_items`.
  """

  __module__ = 't5x.checkpoints'  # T5X's, for gin and pickles

  def __init__(
    self,
    directory: str,
    train_state,
    partitioner,
    dataset_iterator: dataset_iterator.DatasetIterator | None = None,
    save_dtype: str | None = None,
    restore_dtype: str | None = None,
    keep: int | None = None,
    period: int | None = 1,
    checkpoint_steps: Sequence[int] | None = None,
    keep_dataset_checkpoints: int | None = None,
    force_keep_period: int | None = None,
    metric_name_to_monitor: str | None = None,
    metric_mode: str = 'max',
    keep_checkpoints_without_metrics: bool = True,
  ):
    """Opens the folder and removes what an interrupted save left there.

    Args:
      directory: the model folder; created if it is missing.
      train_state: has the names and shapes; its arrays can be ShapeDtypeStruct.
      partitioner: defines where the arrays are placed.
      dataset_iterator: the train iterator to save and restore too, or None.
      save_dtype: dtype of the saved parameters (not of the optimiser's state);
        None: their own.
      restore_dtype: dtype of the restored parameters; None: as saved.
      keep: number of checkpoints to keep; None: all.
      period: steps between checkpoints, for `should_save`.
      checkpoint_steps: unused: the training loop has them.
      keep_dataset_checkpoints: unused: a position is a few bytes.
      force_keep_period: checkpoints of multiples of it stay.
      metric_name_to_monitor: the checkpoints with its best values are kept, see
        `SaveBestCheckpointer`; None: the latest ones.
      metric_mode: 'max' or 'min', which is best.
      keep_checkpoints_without_metrics: whether a checkpoint whose metric is not
        there stays.
    """
    del checkpoint_steps, keep_dataset_checkpoints
    layout = partitioner.get_data_layout()
    self._train_state, self._partitioner = train_state, partitioner
    self._iterator = dataset_iterator
    self._save_dtype, self._restore_dtype = save_dtype, restore_dtype
    self._metric = metric_name_to_monitor
    self._should_write_dataset_ckpt = (
      dataset_iterator is not None and layout.is_first_host_in_replica_set
    )
    self.unfinished_window: Sequence[np.ndarray] = ()
    handlers = {
      'state': ocp.PyTreeCheckpointHandler(use_ocdbt=True),
      'window': checkpoint_items.WindowHandler(),
    }
    if dataset_iterator is not None:
      handlers['dataset'] = checkpoint_items.IteratorHandler(
        layout.shard_id, layout.num_shards, layout.is_first_host_in_replica_set
      )
    self._directory = pathlib.Path(os.path.abspath(directory))
    self._saving = None  # the step
    self._manager = _Manager(
      self._directory,
      item_handlers=handlers,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        save_interval_steps=period or 1,
        keep_period=force_keep_period,
        best_fn=self._metric and (lambda metrics: metrics[self._metric]),
        best_mode=metric_mode,
        keep_checkpoints_without_metrics=keep_checkpoints_without_metrics,
        step_prefix=PREFIX,
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(
          post_finalization_callback=self._write_checksums
        ),
      ),
    )

  @property
  def directory(self) -> epath.Path:
    """The model folder."""
    return epath.Path(self._directory)

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

  def latest_step(self) -> int | None:
    """Returns the step of the latest checkpoint, or None without any."""
    return self._manager.latest_step()

  def should_save(self, step: int) -> bool:
    """Returns whether `period` asks for a checkpoint of a step."""
    return self._manager.should_save(step)

  def wait_until_finished(self) -> None:
    """Blocks until everything saved is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for saves to finish and stops the threads."""
    self._manager.close()

  def save(
    self,
    train_state,
    state_transformation_fns: Sequence[SaveStateTransformationFn] = (),
    force: bool = True,
  ) -> bool:
    """Starts saving; the arrays are copied before this returns.

    Args:
      train_state: the state to save; its arrays may be lazy.
      state_transformation_fns: change what is saved, in order.
      force: whether to save although `should_save` says no.

    Returns:
      whether the state is saved.
    """
    state_dict = materialized(train_state.state_dict())
    step = int(restoring.get_local_data(state_dict['state']['step']))
    if not force and not self.should_save(step):
      return False
    if state_transformation_fns:
      infos = self._parameter_infos()
      for transform in state_transformation_fns:
        state_dict, infos = transform(state_dict, infos)
    dtype = jnp.dtype(self._save_dtype) if self._save_dtype else None
    save_args = {
      key: jax.tree.map(
        lambda leaf: ocp.SaveArgs(
          # Numbers that a transformation added stay as they are.
          dtype=dtype if key == 'target' and hasattr(leaf, 'dtype') else None  # noqa: B023
        ),
        tree,
      )
      for key, tree in state_dict.items()
    }
    items = {'state': ocp.args.PyTreeSave(state_dict, save_args=save_args)}
    if self._iterator is not None:
      items['dataset'] = checkpoint_items.IteratorArgs(self._iterator)
    if len(self.unfinished_window):
      items['window'] = checkpoint_items.WindowArgs(self.unfinished_window)
    metrics = None
    if self._metric:
      from t5x import event_files  # beside the engine

      value = event_files.populate_metrics_for_steps(
        self._directory, self._metric, (step,)
      )
      metrics = {self._metric: value[step]} if value else None
    self._manager.wait_until_finished()
    self._saving = step
    saved = self._manager.save(
      step, args=ocp.args.Composite(**items), metrics=metrics, force=True
    )
    logging.info('Saving checkpoint_%d', step)
    return saved

  def _parameter_infos(self) -> dict[str, Any]:
    """Returns the train state's nested dict with ParameterInfos."""
    axes = restoring.flat_axes(self._train_state, self._partitioner)
    flat = state_utils.flatten_state_dict(
      self._train_state.state_dict(), keep_empty_nodes=True
    )
    return state_utils.unflatten_state_dict(
      {
        name: ParameterInfo(name, tuple(array.shape), axes.get(name))
        if hasattr(array, 'shape')
        else array
        for name, array in flat.items()
      }
    )

  def restore(
    self,
    step: int | None = None,
    path: str | None = None,
    fallback_state: Mapping[str, Any] | None = None,
    state_transformation_fns: opening.Transformations = (),
    lazy_parameters: bool = False,
  ):
    """Returns the train state of a checkpoint, see `Checkpointer.restore`."""
    return restoring.restore_with_data(
      opening.resolve(path or self._directory, step),
      self._iterator,
      train_state=self._train_state,
      partitioner=self._partitioner,
      dtype=self._restore_dtype,
      transformations=state_transformation_fns,
      fallback_state=fallback_state,
      lazy_parameters=lazy_parameters,
    )

  def restore_from_tf_checkpoint(
    self, path_or_dir: str, strict: bool = True, translator=None
  ):
    """Returns the train state of a TensorFlow checkpoint of T5."""
    return restoring.restore_tensorflow(
      path_or_dir,
      self._train_state,
      self._partitioner,
      self._restore_dtype,
      strict=strict,
      translator=translator,
    )
