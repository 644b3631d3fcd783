"""Configurations of checkpoints, initialisation, and T5X's other utilities."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
import numpy as np
from absl import logging
from etils import epath
from flax import traverse_util

from selective_t5x.errors import UserError
from t5x import checkpoints, optimizers, partitioning
from t5x import train_state as train_state_lib

# T5X has these under this module's name.
from t5x.datasets import (  # noqa: F401
  DatasetConfig,
  get_dataset,
  get_training_eval_datasets,
  get_vocabulary,
  import_module,
  prepare_train_iter,
  round_vocab_size_to_multiple,
  verify_matching_vocabs,
)
from t5x.schedules import (  # noqa: F401
  LearningRateCallable,
  create_learning_rate_scheduler,
)

_DTYPES = (None, 'float32', 'bfloat16', 'float16')


@dataclasses.dataclass
class SaveCheckpointConfig:
  """When and how checkpoints are saved.

  Attributes:
    dtype: of the saved parameters: 'float32', 'bfloat16' or None (as they are).
    period: steps between checkpoints.
    keep: number of latest checkpoints to keep; None keeps all.
    save_dataset: whether the position in the training data is saved too, so
      that a resumed run goes on with the next example.
  """

  dtype: str | None = 'float32'
  period: int | None = None
  keep: int | None = None
  save_dataset: bool = False

  def __post_init__(self):
    if self.dtype not in (None, 'float32', 'bfloat16'):
      raise ValueError(
        "`SaveCheckpointConfig.dtype` must be one of None, 'float32' or "
        f"'bfloat16'. Got {self.dtype}."
      )


@dataclasses.dataclass
class RestoreCheckpointConfig:
  """Which checkpoint is restored.

  Attributes:
    path: a checkpoint (mode 'specific') or a folder of them (mode 'latest'); an
      empty sequence restores nothing.
    mode: 'specific' or 'latest'.
    dtype: of the restored parameters; None is as saved.
    restore_dataset: whether the position in the training data is restored.
  """

  path: str | Sequence[str]
  mode: str = 'latest'
  dtype: str | None = None
  restore_dataset: bool = False

  def __post_init__(self):
    if self.mode not in ('specific', 'latest'):
      raise ValueError(
        "`RestoreCheckpointConfig.mode` must be 'specific' or 'latest'. Got "
        f'{self.mode}.'
      )
    if self.dtype not in _DTYPES:
      raise ValueError(
        f'`RestoreCheckpointConfig.dtype` must be one of {_DTYPES}. Got '
        f'{self.dtype}.'
      )


@dataclasses.dataclass
class CheckpointConfig:
  """What is saved, and what is restored before the first step."""

  save: SaveCheckpointConfig | None = None
  restore: RestoreCheckpointConfig | None = None


def checkpoint_to_restore(cfg: RestoreCheckpointConfig) -> str | None:
  """Returns the path of the checkpoint that a config names, or None.

  Raises:
    UserError: it names one that is not there.
  """
  if not cfg.path:
    return None
  if not isinstance(cfg.path, str):
    raise UserError(
      f'RestoreCheckpointConfig.path = {cfg.path!r}: expected one path'
    )
  if cfg.mode == 'latest':
    steps = checkpoints.all_steps(cfg.path)
    if not steps:
      raise UserError(
        f'RestoreCheckpointConfig.path = {cfg.path!r}: no checkpoint_N folder '
        'in it'
      )
    return checkpoints.checkpoint_path(cfg.path, steps[-1])
  return checkpoints.find_checkpoint(cfg.path)


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
      optimizer_def: None gives an InferenceState, without an optimiser.
      init_fn: model.get_initial_variables.
      input_shapes: shape of each feature of the global batch.
      partitioner: shards the train state.
      input_types: dtype of each feature; float32 where absent.
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

  def from_scratch(self, init_rng: jax.Array):
    """Returns the initial train state, computed where it is stored."""
    return self._partitioner.partition(
      self._initialize,
      in_axis_resources=None,
      out_axis_resources=self.train_state_axes,
    )(init_rng)

  def from_checkpoint(self, path: str, dtype: str | None = None, iterator=None):
    """Returns the train state of a checkpoint; see `checkpoints.restore`."""
    logging.info('Restoring %s', path)
    return checkpoints.restore(
      path,
      self.global_train_state_shape,
      self.train_state_axes,
      self._partitioner,
      dtype=dtype,
      iterator=iterator,
    )


def log_model_info(
  log_file: str | None,
  full_train_state,
  partitioner: partitioning.BasePartitioner,
) -> int:
  """Writes each array's name, size, axes and sharding; returns the total.

  Args:
    log_file: the file to write, or None.
    full_train_state: the train state with jax.ShapeDtypeStruct leaves.
    partitioner: gives the axes.

  Returns:
    the number of parameters.
  """
  flatten = flatten_dict_string_keys
  arrays = flatten(full_train_state.state_dict())
  logical = flatten(partitioner.get_logical_axes(full_train_state).state_dict())
  mesh = flatten(partitioner.get_mesh_axes(full_train_state).state_dict())
  lines = []
  for name, array in arrays.items():
    axes = logical[name]
    shape = (
      str(tuple(array.shape))
      if axes is None
      else ', '.join(
        f'{axis}={size}' for axis, size in zip(axes, array.shape, strict=True)
      )
    )
    lines.append(
      f'Variable {name:<80} size {np.size(array):<12} shape {shape:<40} '
      f'partition spec {tuple(mesh[name] or ())}'
    )
  total = sum(
    np.size(array)
    for name, array in arrays.items()
    if name.startswith('target/')
  )
  lines.append(f'Total number of parameters: {total}')
  logging.info('Total number of parameters: %d', total)
  if log_file is not None and jax.process_index() == 0:
    epath.Path(log_file).write_text('\n'.join(lines) + '\n')
  return total


def flatten_dict_string_keys(x: Mapping) -> dict[str, Any]:
  """Flattens a nested dict; keys are joined by '/'."""
  return traverse_util.flatten_dict(flax.core.unfreeze(x), sep='/')


def set_hardware_rng_ops() -> None:
  """Makes JAX draw random numbers with the accelerator's own generator."""
  jax.config.update('jax_default_prng_impl', 'unsafe_rbg')
