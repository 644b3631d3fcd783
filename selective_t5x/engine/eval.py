"""The evaluation run: it scores a checkpoint on a task or mixture."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Sequence

import jax
import numpy as np
import seqio
from etils import epath
from jax.experimental import multihost_utils

from selective_t5x.errors import UserError, changes
from t5x import (
  checkpoint_configs,
  data_reading,
  datasets,
  descriptions,
  evaluators,
  gin_utils,
  inference,
  integrity,
  metric_managers,
  metric_values,
  models,
  partitioning,
  utils,
)

SummarizeConfigFn = Callable[..., None]


class InferenceEvaluator:
  """Evaluates a model with a seqio Evaluator: the tasks' own metrics."""

  def __init__(
    self,
    infer_eval_dataset_cfg: utils.DatasetConfig,
    inference_evaluator_cls: Callable[..., seqio.Evaluator],
    model: models.BaseModel,
    partitioner: partitioning.BasePartitioner,
    log_dir: str | None = None,
    verify_matching_vocabs_fn: Callable | None = utils.verify_matching_vocabs,
  ):
    """Loads the examples.

    Args:
      infer_eval_dataset_cfg: the data to evaluate on.
      inference_evaluator_cls: makes the seqio Evaluator.
      model: scores the examples.
      partitioner: shards the work.
      log_dir: folder for seqio's loggers; None: no logs.
      verify_matching_vocabs_fn: checks task against model, or None.
    """
    cfg = infer_eval_dataset_cfg
    if verify_matching_vocabs_fn and isinstance(
      model, models.BaseTransformerModel
    ):
      verify_matching_vocabs_fn(cfg, model)
    self._model = model
    self._partitioner = partitioner
    self._batch_size = cfg.batch_size
    self._log_dir = log_dir and os.path.join(log_dir, 'inference_eval')
    log_args = {'logger_cls': ()}
    if log_dir:
      log_args = {'log_dir': self._log_dir}
      os.makedirs(self._log_dir, exist_ok=True)  # JSONLogger does not
    tasks = seqio.get_subtasks(datasets.get_mixture_or_task(cfg))
    with evaluators.optional_features(
      [task for task in tasks if cfg.split in task.splits],
      sequence_length=cfg.task_feature_lengths,
      split=cfg.split,
      shuffle=False,
      use_cached=cfg.use_cached,
      seed=cfg.seed,
    ):
      self._evaluator = inference_evaluator_cls(
        mixture_or_task_name=cfg.mixture_or_task_name,
        feature_converter=model.FEATURE_CONVERTER_CLS(pack=False),
        eval_split=cfg.split,
        use_cached=cfg.use_cached,
        seed=cfg.seed,
        sequence_length=cfg.task_feature_lengths,
        use_memory_cache=cfg.use_memory_cache,
        **log_args,
      )
    evaluators.prepare(self._evaluator, cfg.split)
    self._infer_fns = {}

  def keep_until(self, step: int) -> None:
    """Drops JSONLogger's lines of later steps, which will be repeated."""
    if self._log_dir and jax.process_index() == 0:
      for file in epath.Path(self._log_dir).glob('*-metrics.jsonl'):
        metric_managers.keep_lines_until(file, step)

  @property
  def model_feature_shapes(self):
    """{model feature: shape of one example}."""
    return self._evaluator.model_feature_shapes

  @property
  def eval_tasks(self):
    """The tasks that have the split and metrics."""
    return self._evaluator.eval_tasks

  def close(self) -> None:
    """Waits until all metrics are written."""
    self._evaluator.close()

  def evaluate(self, train_state, train_state_axes):
    """Returns a future of {task: {metric: value}}."""

    def infer_fn(name, **kwargs):
      if not hasattr(self._model, name):
        return None
      if name not in self._infer_fns:
        self._infer_fns[name] = inference.get_infer_fn(
          getattr(self._model, name),
          self._batch_size,
          train_state_axes,
          self._partitioner,
          # A score does not depend on the padding after it.
          trim_rows=name == 'score_batch',
        )
      return lambda ds: self._infer_fns[name](ds, train_state, **kwargs)

    rng = jax.random.PRNGKey(0)
    metrics, _ = self._evaluator.evaluate(
      compute_metrics=jax.process_index() == 0,
      step=int(train_state.step),
      score_fn=infer_fn('score_batch'),
      predict_fn=infer_fn('predict_batch', rng=rng),
      predict_with_aux_fn=infer_fn('predict_batch_with_aux', rng=rng),
    )
    return metrics


def evaluate(
  *,
  model: models.BaseTransformerModel,
  dataset_cfg: utils.DatasetConfig,
  restore_checkpoint_cfg: utils.RestoreCheckpointConfig,
  partitioner: partitioning.BasePartitioner,
  output_dir: str,
  inference_evaluator_cls: Callable[..., seqio.Evaluator] | None = (
    seqio.Evaluator
  ),
  training_evaluator_cls: Callable | None = None,
  summarize_config_fn: Callable = gin_utils.summarize_gin_config,
  train_state_initializer_cls: type = utils.TrainStateInitializer,
  train_eval_get_dataset_fn: Callable = utils.get_training_eval_datasets,
  fallback_init_rng: int | None = None,
  use_orbax: bool = True,
):
  """Evaluates checkpoints with the tasks' metrics and with teacher forcing.

  Mode 'all' evaluates one after the other and skips those that an interrupted
  earlier run has evaluated: eval.<task>.ckpt in output_dir lists them.

  Args:
    model: the model to evaluate.
    dataset_cfg: the data to evaluate on.
    restore_checkpoint_cfg: the checkpoints; only parameters are read.
    partitioner: shards the work.
    output_dir: folder of the results.
    inference_evaluator_cls: a seqio Evaluator for the tasks' own metrics, or
      None.
    training_evaluator_cls: a Trainer for loss and accuracy with teacher
      forcing, or None.
    summarize_config_fn: writes the configuration.
    train_state_initializer_cls: makes the train state.
    train_eval_get_dataset_fn: makes the batches for teacher forcing; bind its
      eval_steps.
    fallback_init_rng: seed for RestoreCheckpointConfig.fallback_to_scratch.
    use_orbax: unused: both layouts of checkpoints are read.

  Returns:
    {task: {metric: value}} of the last checkpoint; the metrics of teacher
    forcing under 'training_eval/<task>'.

  Raises:
    UserError: there is no checkpoint, the tasks lack the requested metrics, or
      in mode 'all' output_dir has evaluations of other settings.
  """
  del use_orbax
  paths = checkpoint_configs.paths_to_restore(restore_checkpoint_cfg)
  if not paths:
    raise UserError('RestoreCheckpointConfig.path is empty: name a checkpoint')
  datasets.get_mixture_or_task(dataset_cfg)
  evaluated = _EvaluatedCheckpoints(output_dir, dataset_cfg, model)
  if restore_checkpoint_cfg.mode == 'all':
    paths = evaluated.remaining(paths)
  layout = partitioner.get_data_layout(dataset_cfg.batch_size)

  eval_datasets, evaluator = {}, None
  if training_evaluator_cls:
    eval_datasets = train_eval_get_dataset_fn(
      dataset_cfg,
      layout.shard_id,
      layout.num_shards,
      feature_converter_cls=model.FEATURE_CONVERTER_CLS,
    )
  if inference_evaluator_cls:
    evaluator = InferenceEvaluator(
      dataset_cfg, inference_evaluator_cls, model, partitioner, output_dir
    )
    if not evaluator.eval_tasks:
      evaluator = None
  shapes = _feature_shapes(eval_datasets, evaluator, dataset_cfg)

  # The folder is written only after the data was found.
  os.makedirs(output_dir, exist_ok=True)
  summarize_config_fn(model_dir=output_dir, summary_writer=None, step=0)
  initializer = train_state_initializer_cls(
    optimizer_def=None,
    init_fn=model.get_initial_variables,
    input_shapes={k: (layout.batch_size, *s) for k, s in shapes.items()},
    input_types={k: np.int32 for k in shapes},
    partitioner=partitioner,
  )
  utils.log_model_info(
    os.path.join(output_dir, 'model-info.txt'),
    initializer.global_train_state_shape,
    partitioner,
  )
  rng = None
  if fallback_init_rng is not None:
    rng = jax.random.PRNGKey(fallback_init_rng)
  trainer, results = None, {}
  with contextlib.ExitStack() as stack:
    for path in paths:
      train_state = initializer.from_checkpoint(
        [
          dataclasses.replace(
            restore_checkpoint_cfg, path=path, mode='specific'
          )
        ],
        init_rng=rng,
      )
      if eval_datasets and trainer is None:
        trainer = stack.enter_context(
          _trainer_of(
            training_evaluator_cls,
            model,
            train_state,
            initializer,
            partitioner,
            eval_datasets.keys(),
            output_dir,
          )
        )
      results = {}
      if trainer is not None:
        trainer.train_state = train_state
        results = _training_eval(trainer, eval_datasets)
      if evaluator is not None:
        results |= task_metrics(
          evaluator, train_state, initializer.train_state_axes
        )
      multihost_utils.sync_global_devices(f'evaluated {path}')
      evaluated.add(path)
  if evaluator is not None:
    evaluator.close()
  return results


def _feature_shapes(
  eval_datasets, evaluator: InferenceEvaluator | None, cfg: utils.DatasetConfig
) -> dict[str, tuple[int, ...]]:
  """Returns {model feature: shape of one example}.

  Raises:
    UserError: there is nothing to evaluate.
  """
  if evaluator is not None:
    return evaluator.model_feature_shapes
  for dataset in eval_datasets.values():
    return {k: v.shape[1:] for k, v in dataset.element_spec.items()}
  raise UserError(
    f"'{cfg.mixture_or_task_name}' has no metrics for evaluation, or no split "
    f'{cfg.split!r}'
  )


def _trainer_of(
  trainer_cls, model, train_state, initializer, partitioner, names, folder
):
  """Returns the trainer that evaluates with teacher forcing."""
  return trainer_cls(
    model=model,
    # A trainer drops lines of steps later than its own.
    train_state=train_state.replace_step(np.int32(2**31 - 1)),
    partitioner=partitioner,
    eval_names=names,
    summary_dir=folder,
    train_state_axes=initializer.train_state_axes,
    rng=jax.random.PRNGKey(0),
    learning_rate_fn=None,
    num_microbatches=None,
  )


def task_metrics(
  evaluator: InferenceEvaluator, train_state, train_state_axes
) -> dict[str, dict[str, float]]:
  """Evaluates a train state; returns {task: {metric: value}}.

  Raises:
    UserError: a metric refused the user's settings or data.
  """
  future = evaluator.evaluate(train_state, train_state_axes)
  try:
    results = future.result() or {}
  except ValueError as error:  # seqio adds the task, and that it failed
    if isinstance(error.__cause__, UserError):
      raise error.__cause__ from error
    raise
  return {task: _floats(metrics) for task, metrics in results.items()}


def _training_eval(trainer, eval_datasets) -> dict[str, dict[str, float]]:
  """Evaluates with teacher forcing."""
  summaries = trainer.eval(
    {
      name: data_reading.InterruptibleIterator(dataset)
      for name, dataset in eval_datasets.items()
    }
  )
  return {
    f'training_eval/{task}': {
      name: value
      for name, value in _floats(summary).items()
      if not name.startswith('timing/')
    }
    for task, summary in summaries.items()
  }


def _floats(metrics) -> dict[str, float]:
  """Returns the metrics of clu and seqio that are one number."""
  numbers = {
    k: metric_values.number(getattr(v, 'value', v)) for k, v in metrics.items()
  }
  return {k: v for k, v in numbers.items() if v is not None}


class _EvaluatedCheckpoints:
  """The checkpoints that are already evaluated, in a file like T5X's.

  A JSON file beside it, which T5X does not have, records the settings and the
  content of the checkpoints.
  """

  def __init__(
    self,
    output_dir: str,
    cfg: utils.DatasetConfig,
    model: models.BaseTransformerModel,
  ):
    name = getattr(cfg.mixture_or_task_name, 'name', cfg.mixture_or_task_name)
    self._file = epath.Path(output_dir) / f'eval.{name}.ckpt'
    self._record = self._file.with_suffix('.json')
    self.paths = (
      self._file.read_text().splitlines() if self._file.exists() else []
    )
    self._recorded = (
      json.loads(self._record.read_text()) if self._record.exists() else None
    )
    self._settings = {
      'split': cfg.split,
      'task_feature_lengths': dict(cfg.task_feature_lengths or {}),
      'batch_size': cfg.batch_size,
      **descriptions.of_model(model),
    }

  def remaining(self, paths: Sequence[str]) -> list[str]:
    """Returns the checkpoints of `paths` that are not evaluated yet.

    Raises:
      UserError: the evaluated ones had other settings, or have changed.
    """
    done = [path for path in paths if path in self.paths]
    if done and self._recorded is not None:
      recorded, current = dict(self._recorded), dict(self._settings)
      of_checkpoints = recorded.pop('checkpoints')
      for path in set(done) & set(of_checkpoints):
        recorded[path] = of_checkpoints[path]
        current[path] = integrity.fingerprint(path)
      differing = changes(recorded, current)
      if differing:
        raise UserError(
          f'{self._file} lists evaluations of other settings: {differing}; '
          'give another output folder'
        )
    return [path for path in paths if path not in self.paths]

  def add(self, path: str) -> None:
    """Records one more evaluated checkpoint."""
    if jax.process_index() != 0:
      return
    recorded = dict(self._recorded or {})
    contents = recorded.pop('checkpoints', {})
    if self._recorded is not None and recorded != self._settings:
      self.paths, contents = [], {}  # The file has other settings.
    contents[path] = integrity.fingerprint(path)
    self._recorded = {**self._settings, 'checkpoints': contents}
    _write_whole(self._record, json.dumps(self._recorded))
    if path not in self.paths:
      self.paths.append(path)
      _write_whole(self._file, '\n'.join(self.paths))


def _write_whole(path: epath.Path, text: str) -> None:
  temporary = path.with_name(path.name + '.tmp')
  temporary.write_text(text)
  temporary.replace(path)


if __name__ == '__main__':
  from t5x import main

  main.run('eval')
