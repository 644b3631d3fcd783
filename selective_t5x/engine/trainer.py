"""Trainers: loops over the train and evaluation steps, and their metrics.

A trainer of one's own subclasses Trainer, or BaseTrainer with the two steps
`_partitioned_train_step` and `_partitioned_eval_step`.
"""

import abc
import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import TYPE_CHECKING, Any

import clu.metrics
import clu.values
import flax
import jax
import numpy as np
from jax.sharding import PartitionSpec

from t5x import data_reading, metric_managers, models, partitioning

# T5X exports the actions, the types and the parts of a step from this module.
from t5x.actions import *  # noqa: F403
from t5x.metric_managers import Unfinished
from t5x.preemption import PreemptionError  # noqa: F401
from t5x.step_observers import compiled_step_observers, notify
from t5x.train_step import (  # noqa: F401
  BATCH_SPEC,
  SKIPPED_STEPS,
  Batch,
  TrainState,
  WeightMetricsComputer,
  accumulate_grads_microbatched,
  all_finite,
  apply_finite_grads,
  apply_grads,
  eval_step,
  merge_metrics,
)

if TYPE_CHECKING:  # see __getattr__
  from t5x.trainer_types import *  # noqa: F403


def __getattr__(name: str) -> Any:
  """Returns the name of a type, which only T5X's users use."""
  from t5x import trainer_types

  if name not in trainer_types.__all__:
    raise AttributeError(f'module t5x.trainer has no attribute {name!r}')
  return getattr(trainer_types, name)


def _time() -> float:
  """The clock of trainers and their metrics, in seconds; tests replace it."""
  return time.time()


class MetricsManager(metric_managers.MetricsManager):
  """Writes the metrics of one name, see metric_managers.MetricsManager."""

  def _time(self) -> float:
    return _time()


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
    # Protects the state from readers while the train loop replaces it.
    self._train_state_mutex = threading.RLock()
    self._train_state = train_state
    self._partitioner = partitioner
    self._train_state_axes = train_state_axes
    self._base_rng = rng
    self._summary_dir = summary_dir
    self._compiled_train_step = None
    self._compiled_eval_steps = {}  # {dataset name: compiled step}
    self._compiled_eval_step_cache = {}  # {shapes of a batch: compiled step}
    self._start_time = _time()
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

  @property
  def train_state(self) -> TrainState:
    """The state after the last step."""
    with self._train_state_mutex:
      return self._train_state

  @train_state.setter
  def train_state(self, train_state: TrainState) -> None:
    with self._train_state_mutex:
      self._train_state = train_state

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
    manager.start_duration_timer(elapsed=before.seconds if before else 0.0)
    for step in range(start_step, start_step + num_steps):
      with jax.profiler.StepTraceAnnotation('train', step_num=step):
        batch = (
          None
          if self.interrupted(step)
          else data_reading.next_or_none(batch_iter)
        )
        if batch is not None:
          self.train_state, update = train_step(self.train_state, batch)
      if batch is None:
        if metrics is None:
          self.unfinished = before
        else:
          self.unfinished = Unfinished(
            [np.asarray(x) for x in jax.tree.leaves(metrics)],
            done + step - start_step,
            manager.duration(),
          )
        return None
      if step == start_step and before:
        metrics = jax.tree.unflatten(jax.tree.structure(update), before.arrays)
      metrics = merge_metrics(metrics, update) if metrics else update
    metrics['timing/uptime'] = clu.metrics.LastValue.from_model_output(
      np.asarray([_time() - self._start_time])
    )
    return manager.write_metrics_summary(
      metrics, start_step + num_steps, done + num_steps
    )

  def compile_train(self, batch: Batch) -> None:
    """Compiles the train step for batches like `batch`, ahead of the loop.

    It then calls all `compiled_step_observers`.
    """
    start = _time()
    train_step = self._partitioned_train_step
    self._compiled_train_step = self._partitioner.compile(
      train_step, self.train_state, batch
    )
    self.train_metrics_manager.write_scalar(
      'timing/compilation_seconds', _time() - start, self.train_state.step
    )
    notify(
      compiled_step_observers,
      self._summary_dir,
      train_step,
      (self.train_state, batch),
      self._compiled_train_step,
    )

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
    several = jax.process_count() > 1
    for name, batches in batch_iters.items():
      manager = self.eval_metrics_managers[name]
      eval_step_fn = self._compiled_eval_steps.get(
        name, self._partitioned_eval_step
      )
      metrics, num_steps = None, 0
      manager.start_duration_timer()
      for batch in batches:
        if several:
          batch = self._partitioner.put_batch(batch)
        update = eval_step_fn(self.train_state, batch)
        metrics = merge_metrics(metrics, update) if metrics else update
        num_steps += 1
      if not num_steps:
        raise ValueError(
          f'The evaluation dataset {name} gave no batch: is its split smaller '
          'than one batch after packing and filtering?'
        )
      summaries[name] = manager.write_metrics_summary(metrics, step, num_steps)
    return {name: future.result() for name, future in summaries.items()}

  def compile_eval(self, batches: Mapping[str, Batch]) -> None:
    """Compiles the evaluation step of each dataset, ahead of `eval`.

    Without it `eval` compiles the step when it comes to it.

    Args:
      batches: {dataset name: a batch}, of whose values only shapes and dtypes
        matter. Equal ones share a compiled step.
    """
    for name, batch in batches.items():
      start = _time()
      key = flax.core.freeze(jax.eval_shape(lambda: batch))  # noqa: B023
      if key not in self._compiled_eval_step_cache:
        if jax.process_count() > 1:
          batch = self._partitioner.put_batch(batch)
        self._compiled_eval_step_cache[key] = self._partitioner.compile(
          self._partitioned_eval_step, self.train_state, batch
        )
      self._compiled_eval_steps[name] = self._compiled_eval_step_cache[key]
      self.eval_metrics_managers[name].write_scalar(
        'timing/compilation_seconds', _time() - start, self.train_state.step
      )

  @property
  @abc.abstractmethod
  def _partitioned_train_step(self):
    """(train state, batch) -> (train state, metrics)."""

  @property
  @abc.abstractmethod
  def _partitioned_eval_step(self):
    """(train state, batch) -> metrics."""


def train_with_lr(
  train_state: TrainState,
  batch: Batch,
  learning_rate: jax.Array,
  dropout_rng: jax.Array,
  model: models.BaseModel,
  num_microbatches: int | None,
  weight_metrics_computer: WeightMetricsComputer | None = None,
  data_partition_spec: PartitionSpec = BATCH_SPEC,
  *,
  skip_nonfinite: bool = False,
):
  """Takes one step; returns (train state, metrics).

  For the arguments see accumulate_grads_microbatched and apply_grads; with
  skip_nonfinite the latter's place is taken by apply_finite_grads.
  """
  grads, metrics, mutables = accumulate_grads_microbatched(
    model,
    train_state,
    batch,
    dropout_rng,
    num_microbatches,
    data_partition_spec,
  )
  apply = apply_finite_grads if skip_nonfinite else apply_grads
  return apply(
    train_state,
    grads,
    metrics,
    learning_rate,
    weight_metrics_computer,
    other_state_variables={'flax_mutables': mutables} if mutables else None,
  )


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
    learning_rate_fn: Callable[[jax.Array], jax.Array],
    num_microbatches: int | None,
    weight_metrics_computer: WeightMetricsComputer | None = None,
    max_skipped_steps: int | None = None,
  ):
    """Sets up a BaseTrainer, whose arguments come first, and the train step.

    Args:
      learning_rate_fn: maps the step to the learning rate. With optax
        optimisers it is only reported; they have their own.
      num_microbatches: number of parts of each batch; None or 0: one.
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
        data_partition_spec=self._partitioner.data_partition_spec,
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
    return self._partitioner.partition(
      lambda train_state, batch: eval_step(self._model, train_state, batch),
      in_axis_resources=(
        self._train_state_axes,
        self._partitioner.data_partition_spec,
      ),
      out_axis_resources=None,
    )
