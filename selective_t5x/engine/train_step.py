"""The parts of a train step: gradients of a batch, their application, metrics.

They and an evaluation step are the functions that trainers of one's own call.
"""

import functools
from collections.abc import Mapping
from typing import Any

import clu.metrics
import flax
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from t5x import metrics as metrics_lib
from t5x import models, partitioning, train_state

Batch = Mapping[str, jax.Array]
TrainState = train_state.TrainState
SKIPPED_STEPS = metrics_lib.SKIPPED_STEPS
BATCH_SPEC = PartitionSpec('data')


@jax.jit
def all_finite(tree: Any) -> jax.Array:
  """Returns whether all numbers of all arrays are finite, bool[]."""
  return jnp.all(
    jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)])
  )


@jax.jit
def merge_metrics(a, b):
  """Adds up two trees of metrics, usually dicts, of the same names."""
  return jax.tree.map(
    lambda one, other: one.merge(other),
    a,
    b,
    is_leaf=metrics_lib.is_metric_obj,
  )


def accumulate_grads_microbatched(
  model: models.BaseModel,
  train_state: TrainState,
  batch: Batch,
  dropout_rng: jax.Array,
  num_microbatches: int | None,
  data_partition_spec: PartitionSpec = BATCH_SPEC,
):
  """Computes the gradients of a batch, in parts to save memory.

  The parts' losses, gradients and metrics add up to those of the whole batch,
  except for rounding and the dropout keys: losses are divided by the whole
  batch's factor (`models.BaseModel.for_parts_of`). T5X uses each part's own.

  If the train state has flax_mutables, model.loss_fn takes them as its last
  argument and returns (loss, (metrics, new flax_mutables)), as in T5X. Each
  part then gets those of the part before it.

  Args:
    model: defines the loss.
    train_state: has the parameters.
    batch: arrays [B, …].
    dropout_rng: the step's key; each part folds in its number.
    num_microbatches: number of parts of B; None, 0 or 1: the whole batch.
    data_partition_spec: the partitioning of the rows of a part.

  Returns:
    (gradients, metrics, flax_mutables), the last one None without any.

  Raises:
    ValueError: B cannot be divided so.
  """
  mutables = train_state.flax_mutables or None
  if num_microbatches is None or num_microbatches <= 1:
    grads, metrics, mutables = _grads(
      model, train_state.params, batch, dropout_rng, mutables
    )
    return grads, metrics, mutables
  batch_size = next(iter(batch.values())).shape[0]
  if batch_size % num_microbatches:
    raise ValueError(
      f'Trainer.num_microbatches = {num_microbatches} does not divide the '
      f'batch size {batch_size}'
    )
  of_parts = model.for_parts_of(batch)
  # Rows are assigned to parts in turn, so that each part has rows of every data
  # shard and no row changes its device.
  parts = jax.tree.map(
    lambda x: jnp.moveaxis(x.reshape(-1, num_microbatches, *x.shape[1:]), 1, 0),
    dict(batch),
  )

  def grads_of(index, part, mutables):
    part = jax.tree.map(
      lambda x: partitioning.with_sharding_constraint(x, data_partition_spec),
      part,
    )
    key = jax.random.fold_in(dropout_rng, index)
    return _grads(of_parts, train_state.params, part, key, mutables)

  def add(carry, index_and_part):
    total, metrics_so_far, mutables = carry
    grads, metrics, mutables = grads_of(*index_and_part, mutables)
    merged = merge_metrics(metrics_so_far, metrics)
    metrics = jax.tree.map(
      lambda new, sum_: jnp.where(index_and_part[0] == 0, new, sum_),
      metrics,
      merged,
    )
    total = jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, grads)
    return (total, metrics, mutables), None

  of_a_part = jax.eval_shape(
    grads_of, 0, jax.tree.map(lambda x: x[0], parts), mutables
  )
  zeros = (
    jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), train_state.params),
    jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), of_a_part[1]),
  )
  (grads, metrics, mutables), _ = jax.lax.scan(
    add, (*zeros, mutables), (jnp.arange(num_microbatches), parts)
  )
  return grads, metrics, mutables


def _grads(model, params, batch, dropout_rng, mutables):
  """Returns (gradients, metrics, flax_mutables) of a batch at once."""
  grad_fn = jax.value_and_grad(model.loss_fn, has_aux=True)
  if mutables is None:
    (_, metrics), grads = grad_fn(params, batch, dropout_rng)
    return grads, metrics, None
  (_, (metrics, mutables)), grads = grad_fn(
    params, batch, dropout_rng, mutables
  )
  return grads, metrics, mutables


class WeightMetricsComputer:
  """Computes norms of the weights, gradients and updates of every parameter."""

  @staticmethod
  def _make_rms_metrics(name: str, tree) -> metrics_lib.MetricsMap:
    """Returns {name/parameter: root mean square} of a tree of arrays."""
    return _of_each_parameter(
      name, tree, lambda x: jnp.sqrt(jnp.mean(jnp.square(x)))
    )

  @staticmethod
  def _make_max_metrics(name: str, tree) -> metrics_lib.MetricsMap:
    """Returns {name/parameter: largest absolute value} of a tree of arrays."""
    return _of_each_parameter(name, tree, lambda x: jnp.max(jnp.abs(x)))

  def compute_metrics(
    self, gradients, old_train_state, new_train_state
  ) -> metrics_lib.MetricsMap:
    """Returns {name/parameter: metric} of one step."""
    new, old = new_train_state.params, old_train_state.params
    update = jax.tree.map(jnp.subtract, new, old)
    norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradients)))
    return {
      **self._make_rms_metrics('weight_rms', new),
      **self._make_max_metrics('weight_max', new),
      **self._make_rms_metrics('weight_gradient_rms', gradients),
      'weight_gradient_norm': _per_step(norm),
      **self._make_rms_metrics('weight_update_rms', update),
      **self._make_rms_metrics(
        'weight_update_divided_by_weight_rms',
        jax.tree.map(jnp.divide, update, old),
      ),
    }


_per_step = metrics_lib.AveragePerStep.from_model_output


def _of_each_parameter(name, tree, fn) -> metrics_lib.MetricsMap:
  flat = flax.traverse_util.flatten_dict(flax.core.unfreeze(tree), sep='/')
  return {f'{name}/{key}': _per_step(fn(x)) for key, x in flat.items()}


def apply_grads(
  train_state: TrainState,
  grad_accum: Any,
  metrics: metrics_lib.MetricsMap,
  learning_rate: jax.Array,
  weight_metrics_computer: WeightMetricsComputer | None,
  other_state_variables: Mapping[str, Any] | None = None,
) -> tuple[TrainState, metrics_lib.MetricsMap]:
  """Applies the gradients of a step.

  Args:
    train_state: the state before the step.
    grad_accum: gradients, from accumulate_grads_microbatched.
    metrics: the metrics of the step; those of the learning rate are added.
    learning_rate: f32[], for the optimiser.
    weight_metrics_computer: adds metrics of the weights, or None.
    other_state_variables: more arguments of train_state.apply_gradient.

  Returns:
    (the state after the step, all metrics).
  """
  new_state = train_state.apply_gradient(
    grad_accum, learning_rate=learning_rate, **(other_state_variables or {})
  )
  rate = jnp.asarray([learning_rate])
  metrics['learning_rate'] = clu.metrics.Average.from_model_output(rate)
  metrics['learning_rate/current'] = clu.metrics.LastValue.from_model_output(
    rate
  )
  if weight_metrics_computer is not None:
    metrics.update(
      weight_metrics_computer.compute_metrics(
        grad_accum, train_state, new_state
      )
    )
  return new_state, metrics


def apply_finite_grads(
  train_state: TrainState,
  grad_accum: Any,
  metrics: metrics_lib.MetricsMap,
  learning_rate: jax.Array,
  weight_metrics_computer: WeightMetricsComputer | None,
  other_state_variables: Mapping[str, Any] | None = None,
) -> tuple[TrainState, metrics_lib.MetricsMap]:
  """Applies the gradients of a step unless one of them is NaN or infinite.

  Such a step changes only the state's step, adds nothing to the model's
  metrics, and is counted in SKIPPED_STEPS. Arguments and result are those of
  apply_grads. Ours.
  """
  finite = all_finite(grad_accum)

  def where_finite(new, old):
    return jax.tree.map(functools.partial(jnp.where, finite), new, old)

  new_state, of_rate = apply_grads(
    train_state, grad_accum, {}, learning_rate, None, other_state_variables
  )
  new_state = where_finite(new_state, train_state).replace_step(new_state.step)
  metrics = where_finite(metrics, jax.tree.map(jnp.zeros_like, metrics))
  metrics[SKIPPED_STEPS] = metrics_lib.Sum(1 - finite.astype(jnp.int32))
  metrics |= of_rate
  if weight_metrics_computer is not None:
    metrics |= weight_metrics_computer.compute_metrics(
      grad_accum, train_state, new_state
    )
  return new_state, metrics


def eval_step(
  model: models.BaseModel, train_state: TrainState, batch: Batch
) -> metrics_lib.MetricsMap:
  """Returns the metrics of a batch, without dropout.

  If the train state has flax_mutables, they are the third argument of
  model.eval_fn, as in T5X.
  """
  mutables = train_state.flax_mutables
  more = (mutables,) if mutables else ()
  return model.eval_fn(train_state.params, batch, *more)[1]
