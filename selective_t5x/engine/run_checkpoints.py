"""What saves and restores the checkpoints of a run, from its configuration."""

import functools
import os
from collections.abc import Mapping
from typing import Any

from absl import logging

from selective_t5x.errors import UserError
from t5x import checkpoint_configs


def restore_path(manager, path: str, cfg, fallback_state, *more):
  """Restores a checkpoint, with `more` transformations after the config's.

  Raises:
    UserError: it is of another model, or TensorFlow's with transformations.
  """
  transformations = cfg.transformations()
  if not checkpoint_configs.is_tensorflow(path):
    return manager.restore(
      path=path,
      state_transformation_fns=(*transformations, *more),
      fallback_state=fallback_state,
    )
  if transformations:
    raise UserError(
      f'{path} is a TensorFlow checkpoint, whose names no assignment_map or '
      'state_transformation_fns can change: convert it first '
      '(Checkpointer.convert_from_tf_checkpoint)'
    )
  return manager.restore_from_tf_checkpoint(path, strict=cfg.strict)


def create_orbax_checkpoint_manager(
  *,
  save_cfg: checkpoint_configs.SaveCheckpointConfig | None = None,
  restore_cfg: checkpoint_configs.RestoreCheckpointConfig | None = None,
  train_state,
  partitioner,
  ds_iter=None,
  model_dir: str | None = None,
):
  """Returns the checkpoint_manager_cls of the configs with their settings.

  The metric of a SaveBestCheckpointer, if one is configured, is its metric.

  Raises:
    ValueError: the configs name different classes.
  """
  cfgs = [cfg for cfg in (save_cfg, restore_cfg) if cfg is not None]
  classes = [cfg.checkpoint_manager_cls for cfg in cfgs]
  if any(cls is not classes[0] for cls in classes):
    raise ValueError(
      'Must provide matching configurations of `checkpoint_manager_cls` in '
      '`save_cfg` and `restore_cfg`.'
    )
  options = [_of_the_best(cfg.checkpointer_cls) for cfg in cfgs]
  with_data = (save_cfg is not None and save_cfg.save_dataset) or (
    restore_cfg is not None and restore_cfg.restore_dataset
  )
  return classes[0](
    directory=model_dir,
    train_state=train_state,
    partitioner=partitioner,
    dataset_iterator=ds_iter if with_data else None,
    save_dtype=save_cfg and save_cfg.dtype,
    restore_dtype=restore_cfg and restore_cfg.dtype,
    keep=save_cfg and save_cfg.keep,
    period=save_cfg and save_cfg.period,
    **next(filter(None, options), {}),
  )


def _class(checkpointer_cls: Any) -> Any:
  while isinstance(checkpointer_cls, functools.partial):
    checkpointer_cls = checkpointer_cls.func
  return checkpointer_cls


def _of_the_best(checkpointer_cls: Any) -> Mapping[str, Any]:
  """Returns a SaveBestCheckpointer's settings, which gin may have bound."""
  if not hasattr(_class(checkpointer_cls), 'manager_options'):
    return {}
  return checkpointer_cls(None, None, '').manager_options


def manager_of_run(
  save_cfg: checkpoint_configs.SaveCheckpointConfig | None,
  train_state,
  partitioner,
  ds_iter,
  model_dir: str,
  use_orbax: bool,
):
  """Returns what saves the checkpoints of a training run; None: nothing does.

  A checkpointer_cls of one's own saves, also with use_orbax, with which the
  real T5X ignores it.
  """
  if save_cfg is None:
    return None
  if save_cfg.keep_dataset_checkpoints:
    logging.info('SaveCheckpointConfig.keep_dataset_checkpoints: all stay')
  cls = _class(save_cfg.checkpointer_cls)
  own = getattr(cls, '__module__', None) != 't5x.checkpoints'
  if own and use_orbax:
    logging.info('SaveCheckpointConfig.checkpointer_cls saves: %s', cls)
  if use_orbax and not own:
    return create_orbax_checkpoint_manager(
      save_cfg=save_cfg,
      train_state=train_state,
      partitioner=partitioner,
      ds_iter=ds_iter,
      model_dir=os.fspath(model_dir),
    )
  return checkpointer(save_cfg, train_state, partitioner, ds_iter, model_dir)


def checkpointer(save_cfg, train_state, partitioner, ds_iter, model_dir: str):
  """Returns the checkpointer_cls of a config with its settings."""
  return save_cfg.checkpointer_cls(
    train_state=train_state,
    partitioner=partitioner,
    checkpoints_dir=os.fspath(model_dir),
    dataset_iterator=ds_iter if save_cfg.save_dataset else None,
    save_dtype=save_cfg.dtype,
    keep=save_cfg.keep,
    keep_dataset_checkpoints=save_cfg.keep_dataset_checkpoints,
  )
