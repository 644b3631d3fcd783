"""Names of the types that trainers and their users pass to each other."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Protocol

import clu.metrics
import clu.values
import jax
import numpy as np
from flax.core import FrozenDict
from jax.sharding import PartitionSpec

from t5x import models, partitioning
from t5x.schedules import LearningRateCallable
from t5x.train_state import TrainState

__all__ = (
  'Array',
  'ArrayMapFuture',
  'BaseTrainerConstructor',
  'BatchSpec',
  'BatchType',
  'FlaxMutables',
  'LearningRateCallable',
  'MetricMapSpec',
  'MetricMapType',
  'MetricValueMapFuture',
  'MetricValueMapType',
  'ModelWeights',
  'MutableMetricMapType',
  'PartitionSpec',
  'PartitionedEvalCallable',
  'PartitionedTrainCallable',
  'PyTree',
  'Rng',
  'SummarizeMetricsCallable',
  'TimeFuture',
)

Array = np.ndarray | jax.Array
BatchSpec = Mapping[str, jax.ShapeDtypeStruct]
BatchType = Mapping[str, Array]
FlaxMutables = FrozenDict
MetricMapSpec = Mapping[str, jax.ShapeDtypeStruct]
MetricMapType = MutableMapping[str, clu.metrics.Metric]
MetricValueMapType = Mapping[str, clu.values.Value]
ModelWeights = Any
MutableMetricMapType = dict[str, clu.metrics.Metric]
PyTree = Any
Rng = jax.Array


class ArrayMapFuture(Protocol):
  """A future of {name: array}."""

  def result(self) -> Mapping[str, Array]:
    """Waits for the arrays."""
    ...


class MetricValueMapFuture(Protocol):
  """A future of {metric name: clu value}."""

  def result(self) -> MetricValueMapType:
    """Waits for the values."""
    ...


class TimeFuture(Protocol):
  """A future of seconds."""

  def result(self) -> float:
    """Waits for the seconds."""
    ...


class SummarizeMetricsCallable(Protocol):
  """Summarises the metrics of several steps."""

  def __call__(
    self, metrics: MetricMapType, duration: float, num_steps: int
  ) -> Mapping[str, Array]:
    """Returns {name: value} of metrics merged over `num_steps` steps."""
    ...


class PartitionedTrainCallable(Protocol):
  """A partitioned train step."""

  def __call__(
    self, train_state: TrainState, batch: BatchType
  ) -> tuple[TrainState, MetricMapType]:
    """Returns (train state, metrics)."""
    ...


class PartitionedEvalCallable(Protocol):
  """A partitioned evaluation step."""

  def __call__(
    self, train_state: TrainState, batch: BatchType
  ) -> MetricMapType:
    """Returns the metrics."""
    ...


class BaseTrainerConstructor(Protocol):
  """Makes a trainer; a subclass of BaseTrainer is one."""

  def __call__(
    self,
    model: models.BaseModel,
    train_state: TrainState,
    partitioner: partitioning.BasePartitioner,
    eval_names: Sequence[str],
    summary_dir: str | None,
    train_state_axes: Any,
    rng: Rng,
  ) -> Any:
    """Returns a BaseTrainer, for its arguments see there."""
    ...
