"""Configurations of checkpoints, initialisation, and T5X's other utilities."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax
import jax
import numpy as np
from absl import logging
from etils import epath
from flax import traverse_util

from t5x import partitioning

# T5X exports these from this module.
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
from t5x.restoring import (  # noqa: F401
  RestoreCheckpointConfig,
  TrainStateInitializer,
  get_first_valid_restore_config_and_paths,
)
from t5x.schedules import (  # noqa: F401
  LearningRateCallable,
  create_learning_rate_scheduler,
)


@dataclasses.dataclass
class SaveCheckpointConfig:
  """Settings for saving checkpoints.

  Attributes:
    dtype: dtype of the saved parameters: 'float32', 'bfloat16' or None (their
      own).
    period: steps between checkpoints.
    keep: number of latest checkpoints to keep; None: all.
    save_dataset: whether the position in the training data is saved too, so
      that a resumed run continues with the next example.
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
class CheckpointConfig:
  """Settings for saving, and for restoring before the first step."""

  save: SaveCheckpointConfig | None = None
  restore: RestoreCheckpointConfig | None = None


def log_model_info(
  log_file: str | None,
  full_train_state,
  partitioner: partitioning.BasePartitioner,
) -> int:
  """Writes each array's name, size, axes and sharding; returns the total.

  Args:
    log_file: the file to write, or None.
    full_train_state: the train state with jax.ShapeDtypeStruct leaves.
    partitioner: defines the axes.

  Returns:
    the number of parameters.
  """
  flatten = flatten_dict_string_keys
  arrays = flatten(full_train_state.state_dict())
  logical = flatten(partitioner.get_logical_axes(full_train_state).state_dict())
  mesh = flatten(partitioner.get_mesh_axes(full_train_state).state_dict())
  lines = []
  for name, array in arrays.items():
    if array is None:
      lines.append(f'Variable {name:<80} None')
      continue
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
