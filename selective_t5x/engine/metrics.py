"""T5X's additions to clu's metrics: sums, averages per step, rates over time.

They are pytrees: a train step returns them, and `merge` adds up steps on the
device. After a window of steps the host sets its number of steps and its
duration (compiled code cannot read a clock) and calls `compute`.
"""

from collections.abc import Mapping, MutableMapping

import flax
import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics

Scalar = int | float | jax.Array
# The name of a Sum: the steps of a window whose gradients were not finite.
SKIPPED_STEPS = 'skipped_steps'
MetricsMap = MutableMapping[str, clu_metrics.Metric]


@flax.struct.dataclass
class Sum(clu_metrics.Metric):
  """Sum of a value over steps."""

  total: Scalar

  @classmethod
  def from_model_output(cls, values: Scalar, **_) -> 'Sum':
    """Sums an array of any shape."""
    return cls(total=jnp.sum(jnp.asarray(values)))

  def merge(self, other: 'Sum') -> 'Sum':
    """Adds two sums."""
    return type(self)(total=self.total + other.total)

  def compute(self) -> jax.Array:
    """Returns the sum."""
    return jnp.asarray(self.total)


@flax.struct.dataclass
class Step(clu_metrics.Metric):
  """Base of metrics divided by a number of train steps.

  `steps` is replaced by the host's count: microbatches merge several times
  within one step, so the merged count alone would be too large.
  """

  steps: int | None = 1

  def replace_steps(self, steps: int) -> 'Step':
    """Returns a copy that counts `steps` steps."""
    return self.replace(steps=steps)

  def compute(self) -> jax.Array:
    """Returns the number of steps."""
    if self.steps is None:
      raise ValueError('call replace_steps before compute')
    return jnp.asarray(self.steps)


@flax.struct.dataclass
class AveragePerStep(Step):
  """Total of a value divided by the number of steps."""

  total: Scalar | None = None

  @classmethod
  def from_model_output(
    cls, values: Scalar, steps: int | None = 1, **_
  ) -> 'AveragePerStep':
    """Sums an array of any shape as the total of `steps` steps."""
    return cls(total=jnp.sum(jnp.asarray(values)), steps=steps)

  def merge(self, other: 'AveragePerStep') -> 'AveragePerStep':
    """Adds totals and steps."""
    return type(self)(
      total=self.total + other.total, steps=self.steps + other.steps
    )

  def compute(self) -> jax.Array:
    """Returns total / steps."""
    if self.total is None:
      raise ValueError('AveragePerStep has no total')
    return self.total / Step.compute(self)


@flax.struct.dataclass
class Time(clu_metrics.Metric):
  """Duration in seconds of a window of steps, set by the host."""

  duration: Scalar | None = None

  def merge(self, other: 'Time') -> 'Time':
    """Keeps the first: the host replaces the duration afterwards."""
    del other
    return self

  def replace_duration(self, duration: Scalar) -> 'Time':
    """Returns a copy that lasted `duration` seconds."""
    return self.replace(duration=duration)

  def compute(self) -> jax.Array:
    """Returns the duration in seconds."""
    if self.duration is None:
      raise ValueError('call replace_duration before compute')
    return jnp.asarray(self.duration)


@flax.struct.dataclass
class TimeRate(Time):
  """A sum divided by the duration: tokens per second and the like."""

  numerator: Scalar | None = None

  @classmethod
  def from_model_output(cls, numerator: Scalar, **_) -> 'TimeRate':
    """Starts a rate of `numerator` units."""
    return cls(numerator=numerator)

  def merge(self, other: 'TimeRate') -> 'TimeRate':
    """Adds the numerators; durations are set only after merging."""
    if self.duration is not None or other.duration is not None:
      raise ValueError('cannot merge rates whose duration is already set')
    return type(self)(numerator=self.numerator + other.numerator)

  def compute(self) -> jax.Array:
    """Returns units per second."""
    return self.numerator / Time.compute(self)


@flax.struct.dataclass
class StepsPerTime(Step, Time):
  """Train steps per second."""

  @classmethod
  def from_model_output(cls, steps: int | None = 1, **_) -> 'StepsPerTime':
    """Counts `steps` steps."""
    return cls(steps=steps)

  def merge(self, other: 'StepsPerTime') -> 'StepsPerTime':
    """Adds the steps."""
    return type(self)(steps=self.steps + other.steps)

  def compute(self) -> jax.Array:
    """Returns steps per second."""
    return Step.compute(self) / Time.compute(self)


def is_metric_obj(obj) -> bool:
  """Tells whether obj is a metric, a leaf in trees of metrics."""
  return isinstance(obj, clu_metrics.Metric)


def is_time_metric(obj) -> bool:
  """Tells whether obj needs a duration."""
  return isinstance(obj, Time)


def create_metrics_dict(float_metrics_dict: Mapping[str, Scalar]) -> MetricsMap:
  """Wraps each value in a Sum."""
  return {name: Sum(value) for name, value in float_metrics_dict.items()}


def shape_obj_to_defined_obj(obj):
  """Turns a metric of jax.ShapeDtypeStruct into the same metric of zeros."""
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), obj)


def set_time_metrics_duration(metrics, duration: Scalar):
  """Sets the duration in seconds of every time metric in a tree."""
  return jax.tree.map(
    lambda m: m.replace_duration(duration) if is_time_metric(m) else m,
    metrics,
    is_leaf=is_metric_obj,
  )


def set_step_metrics_num_steps(metrics, num_steps: int):
  """Sets the number of steps of every per-step metric in a tree."""
  return jax.tree.map(
    lambda m: m.replace_steps(num_steps) if isinstance(m, Step) else m,
    metrics,
    is_leaf=is_metric_obj,
  )
