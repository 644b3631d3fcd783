"""T5X's functions that make checkpoint managers and restore with them.

The engine's runs do without: they are for scripts of T5X's users.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from t5x import checkpoint_configs, checkpoints, run_checkpoints


class LegacyCheckpointManager:
  """Saves and restores with the Checkpointer classes of the configs."""

  def __init__(
    self,
    *,
    save_cfg: checkpoint_configs.SaveCheckpointConfig | None,
    restore_cfg: checkpoint_configs.RestoreCheckpointConfig | None,
    train_state_shape,
    partitioner,
    ds_iter=None,
    model_dir: str | None = None,
  ):
    """Makes the checkpointers; without a config there is none."""
    self._saver = self._restorer = None
    self._model_dir = model_dir
    if save_cfg is not None:
      self._saver = run_checkpoints.checkpointer(
        save_cfg, train_state_shape, partitioner, ds_iter, model_dir
      )
    if restore_cfg is not None:
      self._restorer = restore_cfg.checkpointer_cls(
        train_state=train_state_shape,
        partitioner=partitioner,
        checkpoints_dir='',
        dataset_iterator=ds_iter if restore_cfg.restore_dataset else None,
        restore_dtype=restore_cfg.dtype and jnp.dtype(restore_cfg.dtype),
      )

  def all_steps(self) -> Sequence[int]:
    """Returns the steps of the complete checkpoints, in order."""
    return checkpoints.all_steps(self._model_dir)

  def save(self, train_state, state_transformation_fns=()) -> None:
    """Saves a train state; it is in place when this returns.

    Raises:
      ValueError: there is no SaveCheckpointConfig.
    """
    if self._saver is None:
      raise ValueError('no SaveCheckpointConfig: nothing can be saved')
    self._saver.save(train_state, state_transformation_fns)

  def restore(self, paths, restore_cfg=None, fallback_state=None):
    """Returns the only train state, or a list; see `restore`."""
    return restore(self._restorer, paths, restore_cfg, fallback_state)

  def wait_until_finished(self) -> None:
    """Returns at once: a Checkpointer saves before it returns."""

  close = remove_remains = wait_until_finished


def restore(
  checkpoint_manager,
  paths: Sequence[str] | None,
  restore_cfg: checkpoint_configs.RestoreCheckpointConfig | None,
  fallback_state: Mapping[str, Any] | None = None,
):
  """Restores checkpoints.

  Args:
    checkpoint_manager: an OrbaxCheckpointManagerInterface or a Checkpointer.
    paths: the checkpoints.
    restore_cfg: its transformations are applied; its `strict` holds only for
      TensorFlow's checkpoints, as in T5X.
    fallback_state: nested dict of the arrays that a checkpoint lacks.

  Returns:
    the train state of the only checkpoint, or a list; None without a config.
  """
  if restore_cfg is None or paths is None:
    return None
  states = [
    run_checkpoints.restore_path(
      checkpoint_manager, path, restore_cfg, fallback_state
    )
    for path in paths
  ]
  return states[0] if len(states) == 1 else states


def get_fallback_state(
  restore_cfg: checkpoint_configs.RestoreCheckpointConfig | None,
  init_fn: Callable[[jax.Array], Mapping[str, Any]],
  init_rng: jax.Array | None,
) -> Mapping[str, Any] | None:
  """Returns init_fn(init_rng) if the config has fallback_to_scratch.

  Raises:
    ValueError: the seed is missing.
  """
  if restore_cfg is None or not restore_cfg.fallback_to_scratch:
    return None
  if init_rng is None:
    raise ValueError(
      'An `init_rng` must be provided with `fallback_to_scratch`'
    )
  return init_fn(init_rng)


def create_checkpoint_manager_and_restore(
  train_state_initializer,
  partitioner,
  restore_checkpoint_cfg,
  restore_path: str | None,
  fallback_init_rng: jax.Array | None,
  save_checkpoint_cfg: checkpoint_configs.SaveCheckpointConfig | None = None,
  model_dir: str | None = None,
  ds_iter=None,
  use_orbax: bool = False,
):
  """Makes a checkpoint manager and restores a checkpoint.

  Args:
    train_state_initializer: a TrainStateInitializer.
    partitioner: defines where the arrays are placed.
    restore_checkpoint_cfg: how to restore.
    restore_path: the checkpoint; None: nothing is restored.
    fallback_init_rng: for fallback_to_scratch.
    save_checkpoint_cfg: how to save; None: nothing is saved.
    model_dir: folder of the checkpoints; None: that of the restored ones.
    ds_iter: the train iterator, if a config saves or restores its position.
    use_orbax: False: with the configs' checkpointer_cls.

  Returns:
    (the train state or None, the manager).
  """
  shape = train_state_initializer.global_train_state_shape
  settings = {
    'save_cfg': save_checkpoint_cfg,
    'restore_cfg': restore_checkpoint_cfg,
    'partitioner': partitioner,
    'ds_iter': ds_iter,
    'model_dir': model_dir or restore_checkpoint_cfg.path,
  }
  manager = (
    run_checkpoints.create_orbax_checkpoint_manager(
      train_state=shape, **settings
    )
    if use_orbax
    else LegacyCheckpointManager(train_state_shape=shape, **settings)
  )
  if not restore_path:
    return None, manager
  fallback_state = get_fallback_state(
    restore_checkpoint_cfg,
    lambda rng: train_state_initializer.from_scratch(rng).state_dict(),
    fallback_init_rng,
  )
  args = [restore_path], restore_checkpoint_cfg, fallback_state
  state = restore(manager, *args) if use_orbax else manager.restore(*args)
  return state, manager
