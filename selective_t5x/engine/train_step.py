"""One train step: gradients of a batch, their application, its metrics."""

import functools
from collections.abc import Mapping
from typing import Any

import clu.metrics
import flax
import jax
import jax.numpy as jnp

from t5x import metrics as metrics_lib
from t5x import models, train_state

Batch = Mapping[str, jax.Array]
TrainState = train_state.TrainState
SKIPPED_STEPS = metrics_lib.SKIPPED_STEPS


@jax.jit
def all_finite(tree: Any) -> jax.Array:
  """Returns whether all numbers of all arrays are finite, bool[]."""
  return jnp.all(
    jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)])
  )


@jax.jit
def merge_metrics(a, b):
  """Adds up two metric dicts of the same names."""
  return {name: a[name].merge(b[name]) for name in a}


def accumulate_grads_microbatched(
  model: models.BaseModel,
  train_state: TrainState,
  batch: Batch,
  dropout_rng: jax.Array,
  num_microbatches: int | None,
):
  """Returns (gradients, metrics) of a batch, computed in parts to save memory.

  The parts' losses, gradients and metrics add up to those of the whole batch,
  except for rounding and the dropout keys: losses are divided by the whole
  batch's factor (`models.BaseModel.for_parts_of`). T5X uses each part's own.

  Args:
    model: defines the loss.
    train_state: has the parameters.
    batch: arrays [B, …].
    dropout_rng: the step's key; each part folds in its number.
    num_microbatches: number of parts of B; None or 1: the whole batch.

  Raises:
    ValueError: B cannot be divided so.
  """
  if num_microbatches is None or num_microbatches <= 1:
    grad_fn = jax.value_and_grad(model.loss_fn, has_aux=True)
    (_, metrics), grads = grad_fn(train_state.params, batch, dropout_rng)
    return grads, metrics
  batch_size = next(iter(batch.values())).shape[0]
  if batch_size % num_microbatches:
    raise ValueError(
      f'Trainer.num_microbatches = {num_microbatches} does not divide the '
      f'batch size {batch_size}'
    )
  of_parts = model.for_parts_of(batch)
  grad_fn = jax.value_and_grad(of_parts.loss_fn, has_aux=True)
  # Rows are assigned to parts in turn, so that each part has rows of every data
  # shard and no row changes its device.
  parts = jax.tree.map(
    lambda x: jnp.moveaxis(x.reshape(-1, num_microbatches, *x.shape[1:]), 1, 0),
    dict(batch),
  )

  def grads_of(index, part):
    (_, metrics), grads = grad_fn(
      train_state.params, part, jax.random.fold_in(dropout_rng, index)
    )
    return jax.tree.map(lambda g: g.astype(jnp.float32), grads), metrics

  def add(total, index_and_part):
    grads, metrics = grads_of(*index_and_part)
    merged = merge_metrics(total[1], metrics)
    metrics = jax.tree.map(
      lambda new, sum_: jnp.where(index_and_part[0] == 0, new, sum_),
      metrics,
      merged,
    )
    return (jax.tree.map(jnp.add, total[0], grads), metrics), None

  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    jax.eval_shape(grads_of, 0, jax.tree.map(lambda x: x[0], parts)),
  )
  (grads, metrics), _ = jax.lax.scan(
    add, zeros, (jnp.arange(num_microbatches), parts)
  )
  return grads, metrics


class WeightMetricsComputer:
  """Computes norms of the weights, gradients and updates of every parameter."""

  def compute_metrics(self, gradients, old_train_state, new_train_state):
    """Returns {name/parameter: metric} of one step."""
    new, old = new_train_state.params, old_train_state.params
    update = jax.tree.map(jnp.subtract, new, old)

    def rms(x):
      return jnp.sqrt(jnp.mean(jnp.square(x)))

    def per_parameter(name, fn, *trees):
      flat = flax.traverse_util.flatten_dict(
        flax.core.unfreeze(jax.tree.map(fn, *trees)), sep='/'
      )
      return {f'{name}/{k}': v for k, v in flat.items()}

    values = {
      **per_parameter('weight_rms', rms, new),
      **per_parameter('weight_max', lambda x: jnp.max(jnp.abs(x)), new),
      **per_parameter('weight_gradient_rms', rms, gradients),
      **per_parameter('weight_update_rms', rms, update),
      **per_parameter(
        'weight_update_divided_by_weight_rms',
        lambda u, w: rms(u / w),
        update,
        old,
      ),
      'weight_gradient_norm': jnp.sqrt(
        sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradients))
      ),
    }
    return {
      k: metrics_lib.AveragePerStep.from_model_output(v)
      for k, v in values.items()
    }


def train_with_lr(
  train_state: TrainState,
  batch: Batch,
  learning_rate: jax.Array,
  dropout_rng: jax.Array,
  model: models.BaseModel,
  num_microbatches: int | None,
  weight_metrics_computer: WeightMetricsComputer | None = None,
  skip_nonfinite: bool = False,
):
  """Takes one step; returns (train state, metrics).

  With skip_nonfinite a step whose gradients are not all finite changes only the
  state's step, adds nothing to the model's metrics, and is counted in
  SKIPPED_STEPS.
  """
  grads, metrics = accumulate_grads_microbatched(
    model, train_state, batch, dropout_rng, num_microbatches
  )
  new_state = train_state.apply_gradient(grads, learning_rate=learning_rate)
  if skip_nonfinite:
    finite = all_finite(grads)

    def where_finite(new, old):
      return jax.tree.map(functools.partial(jnp.where, finite), new, old)

    step = new_state.step
    new_state = where_finite(new_state, train_state).replace_step(step)
    metrics = where_finite(metrics, jax.tree.map(jnp.zeros_like, metrics))
    metrics[SKIPPED_STEPS] = metrics_lib.Sum(1 - finite.astype(jnp.int32))
  rate = jnp.asarray([learning_rate])
  metrics['learning_rate'] = clu.metrics.Average.from_model_output(rate)
  metrics['learning_rate/current'] = clu.metrics.LastValue.from_model_output(
    rate
  )
  if weight_metrics_computer is not None:
    metrics |= weight_metrics_computer.compute_metrics(
      grads, train_state, new_state
    )
  return new_state, metrics
