"""T5X's Checkpointer, which a repository can subclass.

It writes the layout of `checkpoint_managers`, and reads T5X's older one too. A
run uses it where SaveCheckpointConfig.checkpointer_cls names a class of one's
own, or with use_orbax = False.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from t5x import checkpoints_utils, opening, restoring
from t5x.checkpoint_managers import (
  OrbaxCheckpointManagerInterface,
  SaveStateTransformationFn,
)


class Checkpointer:
  """Saves and restores train states in a folder.

  Attributes:
    checkpoints_dir: the folder.
    keep: number of latest checkpoints to keep; None: all.
    restore_dtype: dtype of restored parameters; None: as saved.
    unfinished_window: arrays of metrics that are saved too, see
      `checkpoint_items`.
  """

  __module__ = 't5x.checkpoints'  # T5X's, for gin and pickles

  def __init__(
    self,
    train_state,
    partitioner,
    checkpoints_dir: str,
    dataset_iterator=None,
    *,
    keep: int | None = None,
    save_dtype: Any = np.float32,
    restore_dtype: Any = None,
    keep_dataset_checkpoints: int | None = None,
  ):
    """Stores the settings.

    Args:
      train_state: has the names and shapes; its arrays can be ShapeDtypeStruct.
      partitioner: defines where the arrays are placed.
      checkpoints_dir: see the attributes.
      dataset_iterator: the train iterator to save and restore too, or None.
      keep: see the attributes.
      save_dtype: dtype of saved parameters; None: their own.
      restore_dtype: see the attributes.
      keep_dataset_checkpoints: unused: a position is a few bytes.
    """
    self._train_state, self._partitioner = train_state, partitioner
    self.checkpoints_dir, self.keep = checkpoints_dir, keep
    self.keep_dataset_checkpoints = keep_dataset_checkpoints
    self._save_dtype, self.restore_dtype = save_dtype, restore_dtype
    self._dataset_iterator = dataset_iterator
    self._options: dict[str, Any] = {}  # of the checkpoint manager
    self.unfinished_window: Sequence[np.ndarray] = ()

  def all_steps(self) -> Sequence[int]:
    """Returns the steps of the complete checkpoints, in order."""
    return checkpoints_utils.all_steps(self.checkpoints_dir)

  def all_dataset_checkpoint_steps(self) -> Sequence[int]:
    """Returns the steps of the checkpoints with a position in the data."""
    return checkpoints_utils.all_dataset_checkpoint_steps(self.checkpoints_dir)

  def latest_step(self) -> int | None:
    """Returns the step of the latest checkpoint, or None without any."""
    return checkpoints_utils.latest_step(self.checkpoints_dir)

  def save(
    self,
    train_state,
    state_transformation_fns: Sequence[SaveStateTransformationFn] = (),
    *,
    concurrent_gb: int = 128,
  ) -> None:
    """Saves a train state; it is in place when this returns.

    A step that has a checkpoint already is not saved again.

    Args:
      train_state: the state to save; its arrays may be lazy.
      state_transformation_fns: change what is saved, in order.
      concurrent_gb: unused: Orbax bounds the memory that it needs.
    """
    del concurrent_gb
    step = restoring.step_of(train_state)
    path = checkpoints_utils.get_checkpoint_dir(self.checkpoints_dir, step)
    if epath.Path(path).exists():
      logging.info('%s is there already and stays', path)
      return
    manager = OrbaxCheckpointManagerInterface(
      self.checkpoints_dir,
      self._train_state,
      self._partitioner,
      self._dataset_iterator,
      save_dtype=self._save_dtype,
      keep=self.keep,
      **self._options,
    )
    manager.unfinished_window = self.unfinished_window
    try:
      manager.save(train_state, state_transformation_fns)
    finally:
      manager.close()

  def wait_until_finished(self) -> None:
    """Returns at once: `save` returns after everything is on disk."""

  close = remove_remains = wait_until_finished

  def restore(
    self,
    step: int | None = None,
    path: str | None = None,
    state_transformation_fns: opening.Transformations = (),
    fallback_state: Mapping[str, Any] | None = None,
    lazy_parameters: bool = False,
  ):
    """Returns the train state of a checkpoint of either layout.

    Args:
      step: the step in the folder; None, without a path: the latest one.
      path: the checkpoint, in place of a step.
      state_transformation_fns: rename the checkpoint's arrays, in order.
      fallback_state: nested dict of the arrays that the checkpoint lacks.
      lazy_parameters: whether arrays are read later, by their `get`; requires
        a partitioner with params_on_devices = False.

    Raises:
      ValueError: both step and path; or lazy arrays for devices.
      UserError: there is no such checkpoint, or it is of another model.
    """
    if lazy_parameters and getattr(
      self._partitioner, 'params_on_devices', True
    ):
      raise ValueError(
        'lazy_parameters = True reads nothing onto devices: the partitioner '
        'must have params_on_devices = False'
      )
    if step is not None and path is not None:
      raise ValueError('At most one of `step` or `path` may be provided.')
    return restoring.restore_with_data(
      opening.resolve(path or self.checkpoints_dir, step),
      self._dataset_iterator,
      train_state=self._train_state,
      partitioner=self._partitioner,
      dtype=self.restore_dtype,
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
      self.restore_dtype,
      strict=strict,
      translator=translator,
    )

  def convert_from_tf_checkpoint(
    self, path_or_dir: str, *, translator=None, **kwargs
  ) -> None:
    """Saves a TensorFlow checkpoint of T5; for the others see `save`."""
    from t5x import checkpoint_importer  # beside the engine

    state_dict = checkpoint_importer.restore_from_t5_checkpoint(
      self._train_state.state_dict(), path_or_dir, True, translator=translator
    )
    self.save(self._train_state.restore_state(state_dict), **kwargs)


CheckpointerConstructor = Callable[..., Checkpointer]
