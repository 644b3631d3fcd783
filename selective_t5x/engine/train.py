"""The training run: data, state, steps, evaluations, checkpoints.

The results of a step, and the saved files, depend only on the configuration and
the step, never on interruptions: a run that was killed and resumed gives the
same numbers, bit for bit (if RANDOM_SEED and the seeds of the datasets are set,
and the train iterator is saved).
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
import seqio
from absl import logging
from clu import metric_writers
from jax.experimental import multihost_utils

from selective_t5x.errors import Interrupted, UserError
from t5x import (
  datasets,
  models,
  partitioning,
  resuming,
  run_checkpoints,
  train_data,
  train_schedule,
  utils,
)
from t5x import eval as eval_lib
from t5x import trainer as trainer_lib
from t5x.train_loop import (  # noqa: F401
  TRAIN_METRIC_KEY,
  Loop,
  NonFiniteLossError,
  run_actions,
)


def train(
  *,
  model: models.BaseModel,
  train_dataset_cfg: utils.DatasetConfig,
  train_eval_dataset_cfg: utils.DatasetConfig | None,
  infer_eval_dataset_cfg: utils.DatasetConfig | None = None,
  checkpoint_cfg: utils.CheckpointConfig,
  partitioner: partitioning.BasePartitioner,
  trainer_cls: trainer_lib.BaseTrainerConstructor,
  model_dir: str,
  total_steps: int,
  eval_steps: int,
  eval_period: int,
  relative_steps: int | None = None,
  stats_period: int | None = None,
  random_seed: int | None,
  use_hardware_rng: bool = False,
  summarize_config_fn: Callable[[str, metric_writers.MetricWriter, int], None],
  inference_evaluator_cls: utils.EvaluatorConstructor = seqio.Evaluator,
  get_dataset_fn: utils.GetDatasetCallable = utils.get_dataset,
  concurrent_metrics: bool = True,
  actions: Mapping[str, Sequence[trainer_lib.BaseAction]] | None = None,
  train_eval_get_dataset_fn: utils.GetEvalDatasetCallable = (
    utils.get_training_eval_datasets
  ),
  run_eval_before_training: bool = False,
  train_state_initializer_cls: type = utils.TrainStateInitializer,
  use_orbax: bool = True,
  verify_matching_vocabs_fn: Callable | None = utils.verify_matching_vocabs,
  gc_period: int = 0,
):
  """Trains a model; resumes from the latest checkpoint in model_dir.

  Each evaluation and each window of train metrics is on disk before the
  checkpoint of its step, so that nothing is missing after resuming.

  Args:
    model: the model to train.
    train_dataset_cfg: the training data.
    train_eval_dataset_cfg: the data of the evaluation with teacher forcing, or
      None.
    infer_eval_dataset_cfg: the data of the evaluation with the tasks' own
      metrics, from decoding or scores, or None; written under inference_eval.
    checkpoint_cfg: saving, and restoring before step 0.
    partitioner: shards data and state over the devices.
    trainer_cls: a class with BaseTrainer's arguments.
    model_dir: folder of checkpoints, metrics and configuration.
    total_steps: the step to stop after.
    eval_steps: batches of an evaluation.
    eval_period: steps between evaluations; 0: never.
    relative_steps: number of steps after the restored one; replaces
      total_steps.
    stats_period: steps between train metrics; None: the shorter of the
      evaluation and checkpoint periods.
    random_seed: seed of the initial values and of dropout; None: a new one for
      each run.
    use_hardware_rng: whether random numbers come from the accelerator's own
      generator, which is faster but depends on the sharding.
    summarize_config_fn: writes the configuration; called with (model_dir,
      TensorBoard writer, step).
    inference_evaluator_cls: makes the seqio Evaluator of
      infer_eval_dataset_cfg.
    get_dataset_fn: makes the train dataset, see `datasets.get_dataset`.
    concurrent_metrics: unused: metrics are computed during the next steps, and
      actions see them before the next step.
    actions: {'TRAIN', 'TRAIN_EVAL' or 'INFER_EVAL': actions}; an action watches
      metrics and may stop training. T5X names a train step's task 'train'.
    train_eval_get_dataset_fn: makes the evaluation datasets, see
      `datasets.get_training_eval_datasets`.
    run_eval_before_training: whether to evaluate before the first step.
    train_state_initializer_cls: makes the train state.
    use_orbax: False saves in T5X's older layout, with
      SaveCheckpointConfig.checkpointer_cls.
    verify_matching_vocabs_fn: checks task against model, or None.
    gc_period: steps between garbage collections, which are off between them;
      0: Python's own schedule.

  Returns:
    (the last step, the last train state).

  Raises:
    UserError: a setting is invalid.
    NonFiniteLossError: the loss or a parameter became NaN or infinite.
    Interrupted: SIGTERM came; the current step is finished and saved.
  """
  if not concurrent_metrics:
    logging.info('train.concurrent_metrics = False changes nothing here')
  if not (train_eval_dataset_cfg or infer_eval_dataset_cfg):
    eval_period = 0
  os.makedirs(model_dir, exist_ok=True)
  init_rng, trainer_rng = jax.random.split(
    _make_rng(random_seed, use_hardware_rng)
  )
  layout = partitioner.get_data_layout(train_dataset_cfg.batch_size)
  if verify_matching_vocabs_fn and isinstance(
    model, models.BaseTransformerModel
  ):
    for cfg in filter(None, (train_dataset_cfg, train_eval_dataset_cfg)):
      verify_matching_vocabs_fn(cfg, model)
  train_iter = train_data.iterator(
    train_dataset_cfg,
    get_dataset_fn,
    model.FEATURE_CONVERTER_CLS,
    partitioner,
    checkpoint_cfg,
    model_dir,
  )
  eval_datasets, evaluator = {}, None
  if eval_period and train_eval_dataset_cfg:
    eval_datasets = train_eval_get_dataset_fn(
      train_eval_dataset_cfg,
      layout.shard_id,
      layout.num_shards,
      eval_steps,
      model.FEATURE_CONVERTER_CLS,
    )
  if eval_period and infer_eval_dataset_cfg:
    evaluator = _evaluator(
      infer_eval_dataset_cfg,
      inference_evaluator_cls,
      model,
      partitioner,
      model_dir,
      verify_matching_vocabs_fn,
    )

  batch_spec = datasets.global_batch_spec(train_iter, layout.batch_size)
  initializer = train_state_initializer_cls(
    optimizer_def=model.optimizer_def,
    init_fn=model.get_initial_variables,
    input_shapes={k: v.shape for k, v in batch_spec.items()},
    input_types={k: v.dtype for k, v in batch_spec.items()},
    partitioner=partitioner,
  )
  train_state = resuming.first_train_state(
    initializer, checkpoint_cfg, model_dir, train_iter, init_rng
  )
  first_step = int(train_state.step)
  if relative_steps:
    total_steps = first_step + relative_steps
  if first_step < total_steps:
    train_iter.peek()
  utils.log_model_info(
    os.path.join(model_dir, 'model-info.txt'),
    initializer.global_train_state_shape,
    partitioner,
  )
  if evaluator:
    evaluator.keep_until(first_step)
  if total_steps < first_step:
    raise UserError(
      f'TRAIN_STEPS = {total_steps} (train.total_steps), but {model_dir} is '
      f'at step {first_step} already'
    )
  schedule = train_schedule.of_run(
    first_step,
    total_steps,
    checkpoint_cfg.save,
    stats_period=stats_period,
    eval_period=eval_period,
    gc_period=gc_period,
  )
  manager = run_checkpoints.manager_of_run(
    checkpoint_cfg.save if schedule.ever_saves else None,
    initializer.global_train_state_shape,
    partitioner,
    train_iter,
    model_dir,
    use_orbax,
  )
  trainer = trainer_cls(
    model=model,
    train_state=train_state,
    partitioner=partitioner,
    eval_names=eval_datasets.keys(),
    summary_dir=model_dir,
    train_state_axes=initializer.train_state_axes,
    rng=trainer_rng,
  )
  del train_state  # its buffers are donated to the first step
  summarize_config_fn(
    model_dir, trainer.train_metrics_manager.summary_writer, first_step
  )
  loop = Loop(
    trainer,
    manager,
    eval_datasets,
    evaluator,
    initializer.train_state_axes,
    {trainer_lib.ActionMode[k]: v for k, v in (actions or {}).items()},
    model_dir,
    checkpoint_cfg.save.state_transformation_fns if checkpoint_cfg.save else (),
  )
  step, interrupted = loop.run(
    schedule,
    train_iter,
    _ones_like(batch_spec, partitioner),
    run_eval_before_training,
  )
  if interrupted:
    raise Interrupted(loop.interruption(step))
  multihost_utils.sync_global_devices('train finished')
  return step, trainer.train_state


def _evaluator(
  cfg: utils.DatasetConfig,
  evaluator_cls: utils.EvaluatorConstructor,
  model: models.BaseModel,
  partitioner: partitioning.BasePartitioner,
  model_dir: str,
  verify_matching_vocabs_fn: Callable | None,
) -> eval_lib.InferenceEvaluator | None:
  """Returns the evaluator of the tasks' own metrics, if they have any."""
  evaluator = eval_lib.InferenceEvaluator(
    cfg,
    evaluator_cls,
    model,
    partitioner,
    log_dir=model_dir,
    verify_matching_vocabs_fn=verify_matching_vocabs_fn,
  )
  if evaluator.eval_tasks:
    return evaluator
  _warn_of_no_metrics(cfg)
  return None


def _warn_of_no_metrics(cfg: utils.DatasetConfig) -> None:
  """Logs that the tasks to evaluate have no metrics, with which T5X continues.

  Raises:
    UserError: no task has the split.
  """
  provider = datasets.get_mixture_or_task(cfg)
  datasets.check_split(provider, cfg.split)
  logging.warning(
    'train.infer_eval_dataset_cfg: %r has no metrics, so this run has no '
    'evaluation with metrics; None (EVAL_WITH_METRICS) asks for none',
    provider.name,
  )


def _make_rng(random_seed: int | None, use_hardware_rng: bool) -> jax.Array:
  if use_hardware_rng or random_seed is None:
    utils.set_hardware_rng_ops()
  if random_seed is None:
    random_seed = int(
      multihost_utils.broadcast_one_to_all(np.int32(time.time()))
    )
    logging.info('RANDOM_SEED is not set; using %d', random_seed)
  return jax.random.PRNGKey(random_seed)


def _ones_like(batch_spec, partitioner):
  """Returns a batch of ones, with which the train step is compiled."""
  sharding = partitioner.shardings(partitioner.data_partition_spec)
  return {
    name: jax.make_array_from_callback(
      spec.shape,
      sharding,
      lambda index, spec=spec: np.ones(spec.shape, spec.dtype)[index],
    )
    for name, spec in batch_spec.items()
  }


if __name__ == '__main__':
  from t5x import main

  main.run('train')
