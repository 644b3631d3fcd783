"""The names of T5X's utils that its users use and the engine does not."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import seqio
import tensorflow as tf
from flax import traverse_util
from flax.linen import partitioning as flax_partitioning
from jax.experimental import multihost_utils

# T5X exports these from its module utils.
from t5x.legacy_managers import (  # noqa: F401
  LegacyCheckpointManager,
  create_checkpoint_manager_and_restore,
  get_fallback_state,
  restore,
)
from t5x.run_checkpoints import create_orbax_checkpoint_manager  # noqa: F401
from t5x.sharded_iterators import ShardedDatasetIterator  # noqa: F401
from t5x.utils import flatten_dict_string_keys

# What the configurations take as functions, by T5X's names.
EvaluatorConstructor = Callable[..., seqio.Evaluator]
InitFnCallable = Callable[..., Mapping[str, Any]]
InferStepWithRngCallable = InferStepWithoutRngCallable = Callable[..., Any]
InferStepCallable = InferFnCallable = Callable[..., Any]
GetDatasetCallable = Callable[..., tf.data.Dataset]
GetEvalDatasetCallable = Callable[..., Mapping[str, tf.data.Dataset]]

TensorBoardLogger = seqio.TensorBoardLogger
Array = np.ndarray | jax.Array | tf.Tensor
PyTree = Any
PartitionSpec = jax.sharding.PartitionSpec
DType = Any
Shape = tuple[int, ...]


def sync_global_devices(name: str) -> None:
  """Waits until every process has come here, with the same name."""
  multihost_utils.sync_global_devices(name)


def multihost_assert_equal(input_tree: PyTree, fail_message: str = '') -> None:
  """Raises AssertionError if processes have different values."""
  multihost_utils.assert_equal(input_tree, fail_message)


def get_zeros_batch_like_spec(
  batch_spec: Mapping[str, jax.ShapeDtypeStruct],
) -> Mapping[str, jax.Array]:
  """Returns a batch of zeros of these shapes and dtypes."""
  return {
    k: jnp.zeros(spec.shape, spec.dtype) for k, spec in batch_spec.items()
  }


def get_zeros_batch_like_dataset(
  dataset, batch_size: int | None = None
) -> Mapping[str, jax.Array]:
  """Returns a batch of zeros like those of a dataset.

  Args:
    dataset: a tf.data.Dataset of batches, or an iterator with element_spec.
    batch_size: replaces the size of the leading axis.
  """
  zeros = {}
  for name, spec in dataset.element_spec.items():
    shape = tuple(spec.shape)
    if batch_size:
      shape = (batch_size, *shape[1:])
    dtype = getattr(spec.dtype, 'as_numpy_dtype', spec.dtype)
    zeros[name] = jnp.zeros(shape, dtype)
  return zeros


def override_params_axes_names(
  model_variables: Mapping[str, Any],
  params_axes_names_override: Sequence[tuple[str, tuple[str, ...]]] = (),
) -> Mapping[str, Any]:
  """Returns a model's variables with other logical axis names.

  Args:
    model_variables: with the collections 'params' and 'params_axes'.
    params_axes_names_override: pairs (expression for whole names of parameters,
      axis names); the first that fits is used.

  Raises:
    ValueError: there are no axis names, or their number is not the rank.
  """
  if 'params_axes' not in model_variables:
    raise ValueError(
      "Model variables do not contain a 'params_axes' collection to apply an "
      'override to.'
    )
  variables = flax.core.unfreeze(model_variables)
  axes = flatten_dict_string_keys(variables['params_axes'])
  for name, param in flatten_dict_string_keys(variables['params']).items():
    names = next(
      (n for p, n in params_axes_names_override if re.fullmatch(p, name)), None
    )
    if names is None:
      continue
    if len(names) != param.ndim:
      raise ValueError(
        f'Provided axis name override for {name} does not match param rank '
        f'({param.ndim}): {names}'
      )
    axes[f'{name}_axes'] = flax_partitioning.AxisMetadata(names=names)
  variables['params_axes'] = traverse_util.unflatten_dict(axes, sep='/')
  return flax.core.freeze(variables)


def find_first_checkpoint_step(
  checkpoint_steps_index: int,
  checkpoint_steps: Sequence[int],
  first_step: int,
  host_step: int,
) -> int:
  """Returns the index of the next of some steps to save at.

  Args:
    checkpoint_steps_index: the index to begin with.
    checkpoint_steps: the steps, in order.
    first_step: the step that the run began with, which is saved already.
    host_step: the present step.

  Returns:
    the first index from there on whose step is neither past nor first_step; the
    last index if there is none.
  """
  for index in range(checkpoint_steps_index, len(checkpoint_steps)):
    if checkpoint_steps[index] not in (*range(host_step), first_step):
      return index
  return max(checkpoint_steps_index, len(checkpoint_steps) - 1, 0)


def find_next_checkpoint_step(
  checkpoint_steps_index: int,
  inner_num_steps: int,
  is_checkpoint_step: bool,
  host_step: int,
  checkpoint_steps: Sequence[int],
  epoch_end_step: int,
  checkpoint_period: int,
  first_step: int,
) -> tuple[int, bool]:
  """Ends a stretch of steps earlier where one of some steps is to be saved.

  Args:
    checkpoint_steps_index: the index in checkpoint_steps to begin with.
    inner_num_steps: the planned number of steps.
    is_checkpoint_step: returned if the stretch stays as planned.
    host_step: the present step.
    checkpoint_steps: the steps to save at, in order.
    epoch_end_step: the last step of the epoch.
    checkpoint_period: steps between other checkpoints, from first_step on.
    first_step: the step that the run began with.

  Returns:
    (number of steps, whether a step of checkpoint_steps ends them).
  """
  for step in (checkpoint_steps or ())[checkpoint_steps_index:]:
    if step > host_step + inner_num_steps:
      break
    of_period = (
      checkpoint_period and (step - first_step) % checkpoint_period == 0
    )
    if first_step < step <= epoch_end_step and not of_period:
      return step - host_step, True
  return inner_num_steps, is_checkpoint_step
