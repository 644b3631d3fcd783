"""Which checkpoints a run saves, and which one it restores."""

import dataclasses
import functools
import inspect
from collections.abc import Sequence

import tensorflow as tf
from absl import logging
from etils import epath

from selective_t5x.errors import UserError
from t5x import checkpoints, opening, state_utils

_SAVED_DTYPES = (None, 'float32', 'bfloat16')
_DTYPES = (*_SAVED_DTYPES, 'float16')
_MODES = ('specific', 'latest', 'all')


@dataclasses.dataclass
class SaveCheckpointConfig:
  """Settings for saving checkpoints.

  Attributes:
    dtype: dtype of the saved parameters: 'float32', 'bfloat16' or None (their
      own).
    period: steps between checkpoints.
    checkpoint_steps: further steps to save at.
    keep: number of latest checkpoints to keep; None: all.
    keep_dataset_checkpoints: number of latest positions in the data to keep;
      only `checkpointer_cls` removes older ones.
    save_dataset: whether the position in the training data is saved too, so
      that a resumed run continues with the next example.
    checkpointer_cls: another class than `checkpoints.Checkpointer` saves the
      checkpoints, in T5X's older layout.
    state_transformation_fns: functions of (nested dict of the state, of its
      ParameterInfos) that return both as they are saved.
    checkpoint_manager_cls: saves the checkpoints otherwise.
  """

  dtype: str | None = 'float32'
  period: int | None = None
  checkpoint_steps: Sequence[int] | None = None
  keep: int | None = None
  keep_dataset_checkpoints: int | None = None
  save_dataset: bool = False
  checkpointer_cls: checkpoints.CheckpointerConstructor = (
    checkpoints.Checkpointer
  )
  state_transformation_fns: Sequence[checkpoints.SaveStateTransformationFn] = (
    dataclasses.field(default_factory=list)
  )
  checkpoint_manager_cls: checkpoints.CheckpointManagerConstructor = (
    checkpoints.OrbaxCheckpointManagerInterface
  )

  def __post_init__(self):
    if self.dtype not in _SAVED_DTYPES:
      raise ValueError(
        "`SaveCheckpointConfig.dtype` must be one of None, 'float32' or "
        f"'bfloat16'. Got {self.dtype}."
      )


@dataclasses.dataclass
class RestoreCheckpointConfig:
  """The checkpoint to restore, and the parts to restore.

  Attributes:
    path: a checkpoint (mode 'specific') or a folder of them (modes 'latest' and
      'all'), or several, of which the first with checkpoints is used; an empty
      sequence restores nothing. A TensorFlow checkpoint of T5 is one too.
    mode: 'specific', 'latest', or 'all' for one after the other (evaluation).
    assignment_map: the sources of a changed model's arrays, see
      `state_utils.apply_assignment_map`.
    strict: whether parameters that only the checkpoint has are an error.
    fallback_to_scratch: whether arrays that only the model has get their
      initial values. The real T5X requires an assignment_map with it.
    dtype: dtype of the restored parameters; None: as saved.
    restore_dataset: whether the position in the training data is restored.
    checkpointer_cls: reads the checkpoints.
    state_transformation_fns: functions of (nested dict of the checkpoint, of
      the model's state) that return the former with the model's names; applied
      after the assignment_map.
    checkpoint_manager_cls: the same as SaveCheckpointConfig's.
  """

  path: str | Sequence[str]
  mode: str = 'latest'
  assignment_map: state_utils.AssignmentMap | None = None
  strict: bool = True
  fallback_to_scratch: bool = False
  dtype: str | None = None
  restore_dataset: bool = False
  checkpointer_cls: checkpoints.CheckpointerConstructor = (
    checkpoints.Checkpointer
  )
  state_transformation_fns: Sequence[
    checkpoints.RestoreStateTransformationFn
  ] = ()
  checkpoint_manager_cls: checkpoints.CheckpointManagerConstructor = (
    checkpoints.OrbaxCheckpointManagerInterface
  )

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

  def transformations(self) -> opening.Transformations:
    """Returns all functions that rename the checkpoint's arrays, in order."""
    if self.assignment_map is None:
      return (*self.state_transformation_fns,)
    assign = functools.partial(
      state_utils.apply_assignment_map, assignment_map=self.assignment_map
    )
    return (assign, *self.state_transformation_fns)


@dataclasses.dataclass
class CheckpointConfig:
  """Settings for saving, and for restoring before the first step."""

  save: SaveCheckpointConfig | None = None
  restore: RestoreCheckpointConfig | None = None


def is_tensorflow(path: str) -> bool:
  """Returns whether a path names a TensorFlow checkpoint."""
  return epath.Path(f'{path}.index').exists()


def _paths(cfg: RestoreCheckpointConfig) -> list[str]:
  """Returns the checkpoints that a config names, possibly none.

  Raises:
    UserError: a checkpoint or a folder does not exist.
  """
  paths = [cfg.path] if isinstance(cfg.path, str) else list(cfg.path or ())
  if cfg.mode == 'specific':
    return [p if is_tensorflow(p) else opening.resolve(p) for p in paths]
  for folder in paths:
    state = tf.train.get_checkpoint_state(folder)
    valid = (
      list(state.all_model_checkpoint_paths)
      if state
      else [
        checkpoints.checkpoint_path(folder, step)
        for step in checkpoints.all_steps(folder)
      ]
    )
    if valid:
      return valid if cfg.mode == 'all' else valid[-1:]
    if not epath.Path(folder).is_dir():
      raise UserError(
        f'RestoreCheckpointConfig.path = {cfg.path!r}: {folder} is no folder: '
        f'no checkpoint_N folder in it (mode = {cfg.mode!r})'
      )
  return []


def paths_to_restore(cfg: RestoreCheckpointConfig) -> list[str]:
  """Returns the checkpoints that a config names; none for an empty path.

  Raises:
    UserError: the path is not empty, but has no checkpoint.
  """
  paths = _paths(cfg)
  if cfg.path and not paths:
    raise UserError(
      f'RestoreCheckpointConfig.path = {cfg.path!r}: no checkpoint_N folder in '
      'it'
    )
  return paths


def get_first_valid_restore_config_and_paths(
  restore_cfgs: Sequence[RestoreCheckpointConfig],
) -> tuple[RestoreCheckpointConfig | None, list[str]]:
  """Returns the first config that names checkpoints, and the checkpoints.

  A folder without checkpoints is passed over, as in T5X.

  Raises:
    UserError: a checkpoint or a folder that a config names does not exist.
  """
  for cfg in restore_cfgs:
    paths = _paths(cfg)
    if paths:
      return cfg, paths
  return None, []


def sole_path(cfg: RestoreCheckpointConfig, run: str) -> str:
  """Returns the one checkpoint that a run restores.

  Raises:
    UserError: the config names none, or several.
  """
  paths = paths_to_restore(cfg)
  if len(paths) != 1:
    raise UserError(
      f'RestoreCheckpointConfig names {len(paths)} checkpoints: {run} takes one'
    )
  return paths[0]


def resuming(cfg: RestoreCheckpointConfig) -> opening.Transformations:
  """Returns a config's transformations for the run's own checkpoints.

  They are told is_resuming = True. A function without this argument is for the
  first restoring alone.
  """
  functions = []
  for function in cfg.transformations():
    parameters = inspect.signature(function).parameters.values()
    if any(
      p.name == 'is_resuming' or p.kind == p.VAR_KEYWORD for p in parameters
    ):
      functions.append(functools.partial(function, is_resuming=True))
    else:
      logging.info('%s has no is_resuming: not called to resume', function)
  return functions
