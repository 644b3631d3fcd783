"""The sharded train state, from scratch or from a checkpoint."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp

from selective_t5x.errors import UserError
from t5x import (
  checkpoint_configs,
  divisibility,
  optimizers,
  partitioning,
  restoring,
  run_checkpoints,
)
from t5x import train_state as train_state_lib


class TrainStateInitializer:
  """Makes the sharded train state, from scratch or from a checkpoint.

  Attributes:
    global_train_state_shape: the train state with jax.ShapeDtypeStruct leaves.
    train_state_axes: the train state with a PartitionSpec, or None, as leaves.
  """

  def __init__(
    self,
    optimizer_def: optimizers.OptimizerDef | None,
    init_fn: Callable[..., Mapping],
    input_shapes: Mapping[str, tuple[int, ...]],
    partitioner: partitioning.BasePartitioner,
    input_types: Mapping[str, Any] | None = None,
  ):
    """Traces the initialisation.

    Args:
      optimizer_def: None: an InferenceState, without an optimiser.
      init_fn: model.get_initial_variables.
      input_shapes: shape of each feature of the global batch.
      partitioner: shards the train state.
      input_types: dtype of each feature; float32 if it is missing.

    Raises:
      UserError: the mesh's devices do not divide an axis that is split.
    """

    def initialize(rng):
      variables = flax.core.freeze(
        init_fn(rng=rng, input_shapes=input_shapes, input_types=input_types)
      )
      if optimizer_def is None:
        return train_state_lib.InferenceState.create(variables)
      return train_state_lib.FlaxOptimTrainState.create(
        optimizer_def, variables
      )

    self._initialize = initialize
    self._partitioner = partitioner
    self.global_train_state_shape = jax.eval_shape(
      initialize, jax.random.PRNGKey(0)
    )
    self.train_state_axes = partitioner.get_mesh_axes(
      self.global_train_state_shape
    )
    if isinstance(partitioner, partitioning.PjitPartitioner):
      state = self.global_train_state_shape
      divisibility.check(
        state.state_dict(),
        partitioner.get_logical_axes(state).state_dict(),
        self.train_state_axes.state_dict(),
        partitioner.mesh,
      )

  def from_scratch(self, init_rng: jax.Array):
    """Returns the initial train state, computed where it is stored."""
    return self._partitioner.partition(
      self._initialize,
      in_axis_resources=None,
      out_axis_resources=self.train_state_axes,
    )(init_rng)

  def from_checkpoints(
    self,
    restore_cfgs: Sequence[checkpoint_configs.RestoreCheckpointConfig],
    ds_iter=None,
    init_rng: jax.Array | None = None,
  ) -> Iterator[tuple[train_state_lib.TrainState, str]]:
    """Yields the train states of checkpoints, possibly none.

    Args:
      restore_cfgs: the first one that names checkpoints is used.
      ds_iter: the train iterator, moved to its saved position if that config
        has restore_dataset.
      init_rng: for fallback_to_scratch.

    Yields:
      (train state, path of the checkpoint).

    Raises:
      UserError: there is no such checkpoint, or it belongs to another model.
      UnreadableCheckpointError: the checkpoint is broken.
    """
    cfg, paths = checkpoint_configs.get_first_valid_restore_config_and_paths(
      restore_cfgs
    )
    for path in paths:
      yield self._restore(path, cfg, ds_iter, init_rng), path

  def from_checkpoint(
    self,
    ckpt_cfgs: Sequence[checkpoint_configs.RestoreCheckpointConfig],
    *,
    ds_iter=None,
    init_rng: jax.Array | None = None,
  ):
    """Returns the train state of the only checkpoint, or None without one.

    For arguments and errors see from_checkpoints.
    """
    cfg, paths = checkpoint_configs.get_first_valid_restore_config_and_paths(
      ckpt_cfgs
    )
    if cfg is None:
      for named in ckpt_cfgs:
        checkpoint_configs.paths_to_restore(named)
    if len(paths) > 1:
      raise UserError(
        f'Expected at most 1 checkpoint but got {len(paths)}: mode = '
        "'specific' or 'latest' takes one"
      )
    states = self.from_checkpoints(ckpt_cfgs, ds_iter, init_rng)
    return next((state for state, _ in states), None)

  def from_checkpoint_or_scratch(
    self,
    ckpt_cfgs: Sequence[checkpoint_configs.RestoreCheckpointConfig],
    *,
    init_rng: jax.Array,
    ds_iter=None,
  ):
    """Returns the train state of the only checkpoint, or the initial one."""
    cfg, _ = checkpoint_configs.get_first_valid_restore_config_and_paths(
      ckpt_cfgs
    )
    if cfg is None:
      return self.from_scratch(init_rng)
    return self.from_checkpoint([cfg], ds_iter=ds_iter, init_rng=init_rng)

  def _restore(
    self,
    path: str,
    cfg: checkpoint_configs.RestoreCheckpointConfig,
    ds_iter,
    init_rng: jax.Array | None,
  ):
    """Returns the train state of one checkpoint."""
    checkpointer = cfg.checkpointer_cls(
      train_state=self.global_train_state_shape,
      partitioner=self._partitioner,
      checkpoints_dir='',
      dataset_iterator=ds_iter if cfg.restore_dataset else None,
      restore_dtype=jnp.dtype(cfg.dtype) if cfg.dtype else None,
    )
    fallback, strict = None, ()
    if cfg.fallback_to_scratch:
      fallback = _FromScratch(self.from_scratch, init_rng)
    if cfg.strict:
      strict = (restoring.nothing_else(path, cfg.fallback_to_scratch),)
    return run_checkpoints.restore_path(
      checkpointer, path, cfg, fallback, *strict
    )


class _FromScratch(Mapping):
  """The nested dict of the initial state, computed when it is needed."""

  def __init__(self, from_scratch: Callable, init_rng: jax.Array | None):
    self._from_scratch, self._rng = from_scratch, init_rng
    self._state_dict = None

  def _values(self) -> Mapping[str, Any]:
    if self._rng is None:
      raise UserError(
        'RestoreCheckpointConfig.fallback_to_scratch: no seed to initialise '
        'what the checkpoint lacks (fallback_init_rng)'
      )
    if self._state_dict is None:
      self._state_dict = self._from_scratch(self._rng).state_dict()
    return self._state_dict

  def __getitem__(self, key: str) -> Any:
    return self._values()[key]

  def __iter__(self) -> Iterator[str]:
    return iter(self._values())

  def __len__(self) -> int:
    return len(self._values())
