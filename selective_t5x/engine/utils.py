"""All public names of T5X's utils; small utilities are defined here."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import flax
import jax
import numpy as np
from absl import app, logging
from etils import epath
from flax import traverse_util

from t5x import partitioning

# T5X exports these from this module.
from t5x.checkpoint_configs import (  # noqa: F401
  CheckpointConfig,
  RestoreCheckpointConfig,
  SaveCheckpointConfig,
  get_first_valid_restore_config_and_paths,
)
from t5x.checkpoints import get_local_data  # noqa: F401
from t5x.datasets import (  # noqa: F401
  DatasetConfig,
  get_dataset,
  get_dataset_inner,
  get_training_eval_datasets,
  get_vocabulary,
  import_module,
  prepare_train_iter,
  round_vocab_size_to_multiple,
  verify_matching_vocabs,
)
from t5x.inference import get_infer_fn  # noqa: F401
from t5x.initializing import TrainStateInitializer  # noqa: F401
from t5x.schedules import (  # noqa: F401
  LearningRateCallable,
  create_learning_rate_scheduler,
)

if TYPE_CHECKING:
  from t5x.further_utils import *  # noqa: F403


def __getattr__(name: str) -> Any:
  """Returns a name that only T5X's users use, not the engine."""
  from t5x import further_utils

  if name.startswith('_') or not hasattr(further_utils, name):
    raise AttributeError(f'module t5x.utils has no attribute {name!r}')
  return getattr(further_utils, name)


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
  arrays = full_train_state.state_dict()
  logical = partitioner.get_logical_axes(full_train_state).state_dict()
  mesh = partitioner.get_mesh_axes(full_train_state).state_dict()

  def lines(part):
    flat, names, specs = (
      flatten_dict_string_keys(tree[part]) for tree in (arrays, logical, mesh)
    )
    return [
      _variable(name, array, names.get(name), specs.get(name))
      for name, array in flat.items()
    ]

  total = sum(map(np.size, jax.tree.leaves(arrays['target'])))
  summary = f'Total number of parameters: {total}'
  logging.info(summary)
  if log_file is not None and jax.process_index() == 0:
    text = [*lines('target'), summary, '', *lines('state')]
    epath.Path(log_file).write_text('\n'.join(text) + '\n')
  return total


def _variable(name: str, array, logical_axes, mesh_axes) -> str:
  """Returns the line of one array; None: a parameter has no such state."""
  if array is None:
    return f'Variable    {name:<80} None'
  shape = str(tuple(array.shape))
  if logical_axes is not None and len(logical_axes) == len(array.shape):
    sizes = zip(logical_axes, array.shape, strict=True)
    shape = f'({", ".join(f"{axis}={size}" for axis, size in sizes)})'
  spec = None if mesh_axes is None else tuple(mesh_axes)
  return (
    f'Variable    {name:<80} size {np.size(array):<12} shape {shape:<40} '
    f'partition spec {spec}'
  )


def flatten_dict_string_keys(x: Mapping) -> dict[str, Any]:
  """Flattens a nested dict; keys are joined by '/'."""
  return traverse_util.flatten_dict(flax.core.unfreeze(x), sep='/')


def set_hardware_rng_ops() -> None:
  """Makes JAX draw random numbers with the accelerator's own generator."""
  jax.config.update('jax_default_prng_impl', 'unsafe_rbg')


def run_main(main, flags_parser) -> None:
  """Runs `main(argv)` with absl's flags."""
  app.run(main, flags_parser=flags_parser)
