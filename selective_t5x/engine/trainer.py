"""Trainers: loops over the train and evaluation steps, and their metrics."""

import abc
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import clu.metrics
import clu.values
import jax
import numpy as np

from t5x import data_reading, models, partitioning, schedules

# T5X exports the actions and the parts of a step from this module.
from t5x.actions import (  # noqa: F401
  ActionMapType,
  ActionMode,
  BaseAction,
  EarlyStoppingAction,
  TerminateOnNanAction,
)
from t5x.metric_managers import MetricsManager
from t5x.train_step import (  # noqa: F401
  SKIPPED_STEPS,
  Batch,
  TrainState,
  WeightMetricsComputer,
  accumulate_grads_microbatched,
  all_finite,
  merge_metrics,
  train_with_lr,
)

# Called with the model folder, the jaxpr of a train step and the compiled step,
# after compilation; T5X has no such observers.
compiled_step_observers: list[Callable[[str, Any, Any], None]] = []


@dataclasses.dataclass(frozen=True)
class Unfinished:
  """The part of a window of train steps before an interruption.

  Attributes:
    arrays: leaves of the metrics merged over its steps.
    steps: number of its steps.
    seconds: their duration.
  """

  arrays: list[np.ndarray]
  steps: int
  seconds: float


class BaseTrainer(abc.ABC):
  """Runs train and evaluation steps and writes their metrics.

  Metrics are written by threads: use the trainer as a context manager, or call
  close().
  """

  max_skipped_steps: int | None = None  # See Trainer.

  def __init__(
    self,
    model: models.BaseModel,
    train_state: TrainState,
    partitioner: partitioning.BasePartitioner,
    eval_names: Sequence[str],
    summary_dir: str | None,
    train_state_axes: Any,
    rng: jax.Array,
  ):
    """Sets up the metric writers.

    Args:
      model: the model to train.
      train_state: the state to start from.
      partitioner: shards the steps.
      eval_names: names of the evaluation datasets.
      summary_dir: the model folder; None: no metrics are written.
      train_state_axes: the train state with PartitionSpec or None as leaves.
      rng: base of the dropout keys; the step is folded in.
    """
    self._model = model
    self.train_state = train_state
    self._partitioner = partitioner
    self._train_state_axes = train_state_axes
    self._base_rng = rng
    self._summary_dir = summary_dir
    self._compiled_train_step = None
    self._compiled_eval_steps = {}
    self._start_time = time.time()
    self.stop_training = False
    # Tells whether to stop before the next step. `unfinished` then has the
    # finished part of its window, with which a resumed run starts.
    self.interrupted: Callable[[int], bool] = lambda step: False
    self.unfinished: Unfinished | None = None
    step = int(train_state.step)
    self.train_metrics_manager = MetricsManager('train', summary_dir, step)
    self.eval_metrics_managers = {
      name: MetricsManager(f'training_eval/{name}', summary_dir, step)
      for name in eval_names
    }

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def close(self) -> None:
    """Writes the remaining metrics and stops the writers' threads."""
    self.train_metrics_manager.close()
    for manager in self.eval_metrics_managers.values():
      manager.close()

  def flush(self) -> None:
    """Waits until all metrics so far are on disk."""
    self.train_metrics_manager.flush()
    for manager in self.eval_metrics_managers.values():
      manager.flush()

  def _get_step_rng(self, step) -> jax.Array:
    return jax.random.fold_in(self._base_rng, step)

  def train(
    self,
    batch_iter: Iterator[Batch],
    num_steps: int,
    start_step: int | None = None,
  ) -> futures.Future | None:
    """Takes `num_steps` steps, which end a window of metrics.

    Args:
      batch_iter: yields global batches.
      num_steps: one or more.
      start_step: the step of the train state, if the host knows it.

    Returns:
      a future of the metrics over the window, {name: clu value}; or None if it
      was interrupted: then `unfinished` has the finished part.
    """
    if start_step is None:
      start_step = int(self.train_state.step)
    train_step = self._compiled_train_step or self._partitioned_train_step
    before, self.unfinished = self.unfinished, None
    metrics, done = None, before.steps if before else 0
    manager = self.train_metrics_manager
    started = manager.start_duration_timer(before.seconds if before else 0.0)
    for step in range(start_step, start_step + num_steps):
      with jax.profiler.StepTraceAnnotation('train', step_num=step):
        batch = None if self.interrupted(step) else _next(batch_iter)
        if batch is not None:
          self.train_state, update = train_step(self.train_state, batch)
      if batch is None:
        if metrics is None:
          self.unfinished = before
        else:
          self.unfinished = Unfinished(
            [np.asarray(x) for x in jax.tree.leaves(metrics)],
            done + step - start_step,
            time.time() - started,
          )
        return None
      if step == start_step and before:
        metrics = jax.tree.unflatten(jax.tree.structure(update), before.arrays)
      metrics = merge_metrics(metrics, update) if metrics else update
    metrics['timing/uptime'] = clu.metrics.LastValue.from_model_output(
      np.asarray([time.time() - self._start_time])
    )
    return manager.write_metrics_summary(
      metrics, start_step + num_steps, done + num_steps
    )

  def compile_train(self, batch: Batch) -> None:
    """Compiles the train step for batches like `batch`, ahead of the loop.

    It then calls all `compiled_step_observers`.
    """
    start = time.time()
    train_step = self._partitioned_train_step
    self._compiled_train_step = self._partitioner.compile(
      train_step, self.train_state, batch
    )
    self.train_metrics_manager.write_scalar(
      'timing/compilation_seconds', time.time() - start, self.train_state.step
    )
    if self._summary_dir and jax.process_index() == 0:
      jaxpr = train_step.trace(self.train_state, batch).jaxpr
      for observe in compiled_step_observers:
        observe(self._summary_dir, jaxpr, self._compiled_train_step)

  def eval(
    self, batch_iters: Mapping[str, Iterator[Batch]]
  ) -> Mapping[str, Mapping[str, clu.values.Value]]:
    """Evaluates each dataset and writes its metrics.

    Args:
      batch_iters: for each of eval_names, this process's batches (numpy).

    Returns:
      {dataset name: {metric name: clu value}}.

    Raises:
      ValueError: a dataset has no batch.
    """
    summaries = {}
    step = int(self.train_state.step)
    for name, batches in batch_iters.items():
      manager = self.eval_metrics_managers[name]
      metrics, num_steps = None, 0
      manager.start_duration_timer()
      for batch in batches:
        update = self._eval_step_for(batch)(
          self.train_state, self._partitioner.put_batch(batch)
        )
        metrics = merge_metrics(metrics, update) if metrics else update
        num_steps += 1
      if not num_steps:
        raise ValueError(
          f'The evaluation dataset {name} gave no batch: is its split smaller '
          'than one batch after packing and filtering?'
        )
      summaries[name] = manager.write_metrics_summary(metrics, step, num_steps)
    return {name: future.result() for name, future in summaries.items()}

  def _eval_step_for(self, batch):
    """Returns the evaluation step compiled for the shapes of a batch."""
    key = tuple(sorted((k, v.shape, str(v.dtype)) for k, v in batch.items()))
    if key not in self._compiled_eval_steps:
      self._compiled_eval_steps[key] = self._partitioner.compile(
        self._partitioned_eval_step,
        self.train_state,
        self._partitioner.put_batch(batch),
      )
    return self._compiled_eval_steps[key]

  @property
  @abc.abstractmethod
  def _partitioned_train_step(self):
    """(train state, batch) -> (train state, metrics)."""

  @property
  @abc.abstractmethod
  def _partitioned_eval_step(self):
    """(train state, batch) -> metrics."""


def _next(batch_iter: Iterator[Batch]) -> Batch | None:
  """Returns the next batch, or None if the wait for it was ended."""
  try:
    return next(batch_iter)
  except data_reading.Stopped:
    return None


class Trainer(BaseTrainer):
  """T5X's trainer: one optimiser step for each batch, optional microbatches."""

  def __init__(
    self,
    model: models.BaseModel,
    train_state: TrainState,
    partitioner: partitioning.BasePartitioner,
    eval_names: Sequence[str],
    summary_dir: str | None,
    train_state_axes: Any,
    rng: jax.Array,
    learning_rate_fn: schedules.LearningRateCallable,
    num_microbatches: int | None,
    weight_metrics_computer: WeightMetricsComputer | None = None,
    max_skipped_steps: int | None = None,
  ):
    """Sets up a BaseTrainer and the train step.

    Args:
      model: see BaseTrainer.
      train_state: see BaseTrainer.
      partitioner: see BaseTrainer.
      eval_names: see BaseTrainer.
      summary_dir: see BaseTrainer.
      train_state_axes: see BaseTrainer.
      rng: see BaseTrainer.
      learning_rate_fn: maps the step to the learning rate. With optax
        optimisers it is only reported; they have their own.
      num_microbatches: number of parts of each batch, or None.
      weight_metrics_computer: adds norms of the weights, or None.
      max_skipped_steps: maximum number of steps in a window of metrics that are
        skipped because their gradients are not finite. None, as in T5X: every
        step is taken, and the run stops once its loss is not finite.
    """
    self.max_skipped_steps = max_skipped_steps
    self._step_options = {'skip_nonfinite': max_skipped_steps is not None}
    self._learning_rate_fn = learning_rate_fn
    self._num_microbatches = num_microbatches
    self._weight_metrics_computer = weight_metrics_computer
    super().__init__(
      model=model,
      train_state=train_state,
      partitioner=partitioner,
      eval_names=eval_names,
      summary_dir=summary_dir,
      train_state_axes=train_state_axes,
      rng=rng,
    )

  @functools.cached_property
  def _partitioned_train_step(self):
    def train_step(train_state, batch):
      return train_with_lr(
        train_state,
        batch,
        learning_rate=self._learning_rate_fn(train_state.step),
        dropout_rng=self._get_step_rng(train_state.step),
        model=self._model,
        num_microbatches=self._num_microbatches,
        weight_metrics_computer=self._weight_metrics_computer,
        **self._step_options,
      )

    return self._partitioner.partition(
      train_step,
      in_axis_resources=(
        self._train_state_axes,
        self._partitioner.data_partition_spec,
      ),
      out_axis_resources=(self._train_state_axes, None),
      donate_argnums=(0,),
    )

  @functools.cached_property
  def _partitioned_eval_step(self):
    def eval_step(train_state, batch):
      return self._model.eval_fn(train_state.params, batch)[1]

    return self._partitioner.partition(
      eval_step,
      in_axis_resources=(
        self._train_state_axes,
        self._partitioner.data_partition_spec,
      ),
      out_axis_resources=None,
    )


BaseTrainerConstructor = Callable[..., BaseTrainer]
