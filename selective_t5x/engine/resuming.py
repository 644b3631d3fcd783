"""The train state that a run starts from."""

import jax
from absl import logging

from selective_t5x.errors import UserError
from t5x import checkpoint_configs, checkpoints, opening


def first_train_state(
  initializer, checkpoint_cfg, model_dir: str, train_iter, init_rng: jax.Array
):
  """Returns the first state: model_dir's, another checkpoint's or a new one.

  A checkpoint of model_dir that cannot be read is put aside, and the one before
  it is used.

  Args:
    initializer: the TrainStateInitializer.
    checkpoint_cfg: T5X's CheckpointConfig of the run.
    model_dir: the model folder.
    train_iter: moved to its saved position.
    init_rng: seed of the initial values.

  Raises:
    UserError: there is no checkpoint that can be read.
  """
  save_cfg, restore_cfg = checkpoint_cfg.save, checkpoint_cfg.restore
  steps = checkpoints.all_steps(model_dir)
  if not steps:
    if restore_cfg:
      checkpoint_configs.paths_to_restore(restore_cfg)
    return initializer.from_checkpoint_or_scratch(
      [restore_cfg] if restore_cfg else [],
      init_rng=init_rng,
      ds_iter=train_iter,
    )
  restore_dataset = bool(save_cfg and save_cfg.save_dataset)
  broken = []
  for step in reversed(steps):
    path = checkpoints.checkpoint_path(model_dir, step)
    cfg = checkpoint_configs.RestoreCheckpointConfig(
      path,
      mode='specific',
      restore_dataset=restore_dataset,
      checkpointer_cls=(
        save_cfg.checkpointer_cls if save_cfg else checkpoints.Checkpointer
      ),
      state_transformation_fns=(
        checkpoint_configs.resuming(restore_cfg) if restore_cfg else ()
      ),
    )
    try:
      state = initializer.from_checkpoint(
        [cfg], ds_iter=train_iter, init_rng=init_rng
      )
    except opening.UnreadableCheckpointError as error:
      broken.append((path, error))
      continue
    for bad, error in broken:
      logging.warning(
        '%s. Resuming from %s; the unreadable one was renamed to %s',
        error,
        path,
        checkpoints.put_aside(bad),
      )
    return state
  raise UserError(
    f'{broken[0][1]}; {model_dir} has no other checkpoint to resume from '
    '(KEEP_CHECKPOINTS = 2 or more keeps some). Restore a copy of it, or set '
    'another MODEL_DIR to start from scratch'
  )
