"""Restores train states from checkpoints, also into a changed model."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax
import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from selective_t5x.errors import (
  UserError,
  absolute_path,
  did_you_mean,
  is_remote,
)
from t5x import (
  checkpoints,
  divisibility,
  integrity,
  legacy_checkpoints,
  optimizers,
  partitioning,
  state_utils,
)
from t5x import train_state as train_state_lib

_DTYPES = (None, 'float32', 'bfloat16', 'float16')
_MODES = ('specific', 'latest', 'all')


class UnreadableCheckpointError(UserError):
  """A checkpoint is broken: a file is missing, truncated or changed."""


@contextlib.contextmanager
def _reading(path: str):
  """Turns errors while a checkpoint is read into one line."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # Orbax and TensorStore raise many types
    why = f'{type(error).__name__}: {error}'.splitlines()[0][:200]
    raise UnreadableCheckpointError(f'{path} cannot be read: {why}') from error


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


@dataclasses.dataclass
class RestoreCheckpointConfig:
  """The checkpoint to restore, and the parts to restore.

  Attributes:
    path: a checkpoint (mode 'specific') or a folder of them (modes 'latest' and
      'all'), or several, of which the first with checkpoints is used; an empty
      sequence restores nothing.
    mode: 'specific', 'latest', or 'all' for one after the other (evaluation).
    assignment_map: the sources of a changed model's arrays, see
      `state_utils.apply_assignment_map`.
    strict: whether parameters that only the checkpoint has are an error.
    fallback_to_scratch: whether arrays that only the model has get their
      initial values. The real T5X requires an assignment_map with it.
    dtype: dtype of the restored parameters; None: as saved.
    restore_dataset: whether the position in the training data is restored.
    state_transformation_fns: functions of (nested dict of the checkpoint, of
      the model's state) that return the former with the model's names; applied
      after the assignment_map.
  """

  path: str | Sequence[str]
  mode: str = 'latest'
  assignment_map: state_utils.AssignmentMap | None = None
  strict: bool = True
  fallback_to_scratch: bool = False
  dtype: str | None = None
  restore_dataset: bool = False
  state_transformation_fns: Sequence[Callable[..., Mapping[str, Any]]] = ()

  def __post_init__(self):
    if self.mode not in _MODES:
      raise ValueError(
        "`RestoreCheckpointConfig.mode` must be one of 'specific', 'latest', "
        f"or 'all'. Got {self.mode}."
      )
    if self.dtype not in _DTYPES:
      raise ValueError(
        "`RestoreCheckpointConfig.dtype` must be one of `None`, 'float32', "
        f"'float16' or 'bfloat16'. Got {self.dtype}."
      )


def paths_to_restore(cfg: RestoreCheckpointConfig) -> list[str]:
  """Returns the checkpoints that a config names; none for an empty path.

  Raises:
    UserError: the path is not empty, but has no checkpoint.
  """
  paths = [cfg.path] if isinstance(cfg.path, str) else list(cfg.path or ())
  if cfg.mode == 'specific':
    return [checkpoints.find_checkpoint(path) for path in paths]
  for folder in paths:
    valid = [
      checkpoints.checkpoint_path(folder, step)
      for step in checkpoints.all_steps(folder)
    ]
    if valid:
      return valid if cfg.mode == 'all' else valid[-1:]
  if paths:
    raise UserError(
      f'RestoreCheckpointConfig.path = {cfg.path!r}: no checkpoint_N folder in '
      'it'
    )
  return []


def get_first_valid_restore_config_and_paths(
  restore_cfgs: Sequence[RestoreCheckpointConfig],
) -> tuple[RestoreCheckpointConfig | None, list[str]]:
  """Returns the first config that names checkpoints, and the checkpoints.

  Raises:
    UserError: the checkpoints that a config names do not exist.
  """
  for cfg in restore_cfgs:
    paths = paths_to_restore(cfg)
    if paths:
      return cfg, paths
  return None, []


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
    restore_cfgs: Sequence[RestoreCheckpointConfig],
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
    cfg, paths = get_first_valid_restore_config_and_paths(restore_cfgs)
    for path in paths:
      state = self._restore(path, cfg, init_rng)
      if ds_iter is not None and cfg.restore_dataset:
        with _reading(path):
          checkpoints.restore_iterator(
            path, self._partitioner, ds_iter, int(state.step)
          )
      yield state, path

  def from_checkpoint(
    self,
    ckpt_cfgs: Sequence[RestoreCheckpointConfig],
    *,
    ds_iter=None,
    init_rng: jax.Array | None = None,
  ):
    """Returns the train state of the only checkpoint, or None without one.

    For arguments and errors see from_checkpoints.
    """
    _, paths = get_first_valid_restore_config_and_paths(ckpt_cfgs)
    if len(paths) > 1:
      raise UserError(
        f'Expected at most 1 checkpoint but got {len(paths)}: mode = '
        "'specific' or 'latest' takes one"
      )
    states = self.from_checkpoints(ckpt_cfgs, ds_iter, init_rng)
    return next((state for state, _ in states), None)

  def from_checkpoint_or_scratch(
    self,
    ckpt_cfgs: Sequence[RestoreCheckpointConfig],
    *,
    init_rng: jax.Array,
    ds_iter=None,
  ):
    """Returns the train state of the only checkpoint, or the initial one."""
    state = self.from_checkpoint(ckpt_cfgs, ds_iter=ds_iter, init_rng=init_rng)
    return self.from_scratch(init_rng) if state is None else state

  def _restore(
    self, path: str, cfg: RestoreCheckpointConfig, init_rng: jax.Array | None
  ):
    """Returns the train state of one checkpoint."""
    logging.info('Restoring %s', path)
    path = absolute_path(path)
    _check_files(path)
    legacy = (epath.Path(path) / legacy_checkpoints.FILE).is_file()
    reader = (
      legacy_checkpoints.LegacyReader(path)
      if legacy
      else checkpoints.OrbaxReader(path)
    )
    state_dict = self.global_train_state_shape.state_dict()
    specs = {
      name: array
      for name, array in state_utils.flatten_state_dict(state_dict).items()
      if array is not None
    }
    with _reading(path):
      checkpoint_arrays = reader.arrays()
    saved = _renamed(checkpoint_arrays, state_dict, cfg)
    _check(path, specs, saved, cfg)

    shardings = _flat_shardings(
      self._partitioner, self.train_state_axes, state_dict
    )

    def dtype_of(name):
      return cfg.dtype if name.startswith('target/') else None

    sources = {name: saved[name].name for name in specs if name in saved}
    requests = {
      source: (shardings[name], dtype_of(name))
      for name, source in sources.items()
    }
    with _reading(path):
      arrays_read = reader.read(requests)
    arrays, used = {}, set()
    for name, source in sources.items():
      array = arrays_read[source]
      # One array of the checkpoint can become several of the model. They must
      # not share memory, since the train step changes them in place.
      arrays[name] = (
        jax.device_put(array, shardings[name], may_alias=False)
        if source in used
        else array
      )
      used.add(source)
    missing = sorted(set(specs) - set(arrays))
    if missing:
      logging.info('From scratch: %d arrays, %s', len(missing), _some(missing))
      if init_rng is None:
        raise UserError(
          'RestoreCheckpointConfig.fallback_to_scratch: no seed to initialise '
          f'{_some(missing)} with (fallback_init_rng)'
        )
      scratch = state_utils.flatten_state_dict(
        self.from_scratch(init_rng).state_dict()
      )
      for name in missing:
        arrays[name] = scratch[name].astype(
          dtype_of(name) or scratch[name].dtype
        )
    complete = state_utils.flatten_state_dict(state_dict) | arrays
    return self.global_train_state_shape.restore_state(
      state_utils.unflatten_state_dict(complete)
    )


def _renamed(
  arrays: Mapping[str, checkpoints.SavedArray],
  state_dict: Mapping[str, Any],
  cfg: RestoreCheckpointConfig,
) -> dict[str, checkpoints.SavedArray]:
  """Returns {name in the model: array of the checkpoint}."""
  saved = state_utils.unflatten_state_dict(arrays)
  if cfg.assignment_map is not None:
    saved = state_utils.apply_assignment_map(
      saved, state_dict, cfg.assignment_map
    )
  for transform in cfg.state_transformation_fns:
    saved = transform(saved, state_dict)
  return state_utils.flatten_state_dict(saved)


def _check(
  path: str,
  specs: Mapping[str, Any],
  saved: Mapping[str, checkpoints.SavedArray],
  cfg: RestoreCheckpointConfig,
) -> None:
  """Raises UserError if names or shapes of the arrays differ from `specs`."""
  # Parameters come first: the optimiser's copies of them repeat the problem.
  missing = sorted(set(specs) - set(saved), key=lambda n: (n[0] != 't', n))
  extra = sorted(
    name for name in set(saved) - set(specs) if name.startswith('target/')
  )
  shapes = [
    f'{name} is {saved[name].shape}, expected {tuple(x.shape)}'
    for name, x in sorted(specs.items(), key=lambda i: (i[0][0] != 't', i[0]))
    if name in saved and saved[name].shape != tuple(x.shape)
  ]
  problems = []
  if missing and not cfg.fallback_to_scratch:
    if missing[0].startswith('state/'):
      raise UserError(
        f'{path} has the state of another optimiser, without {_some(missing)}: '
        'to begin it anew, RestoreCheckpointConfig.assignment_map = '
        "[('state/param_states/.*', None)] and fallback_to_scratch = True"
      )
    problems.append(
      f'without {_some(missing)}{did_you_mean(missing[0], extra)}'
    )
  if extra and cfg.strict:
    problems.append(f'with {_some(extra)}, unknown to the model')
  if shapes:
    problems.append(_some(shapes))
  if problems:
    raise UserError(
      f'{path} is a checkpoint of another model: {"; ".join(problems)} '
      '(RestoreCheckpointConfig.assignment_map renames or leaves out)'
    )


def _some(names: Sequence[str]) -> str:
  return ', '.join(names[:3]) + (' …' if len(names) > 3 else '')


def _flat_shardings(partitioner, axes, state_dict) -> dict[str, Any]:
  """Returns {name: NamedSharding}; an entry of axes can cover a subtree."""
  return state_utils.flatten_state_dict(
    jax.tree.map(
      lambda sharding, part: jax.tree.map(lambda _: sharding, part),
      partitioner.shardings(axes.state_dict()),
      state_dict,
    )
  )
