"""T5X's metrics of a step: loss, accuracy, packing, speed."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics

from t5x import losses
from t5x import metrics as metrics_lib

# The plain cross-entropy of the targets in nats, a mean over tokens.
TOKEN_LOSS = 'cross_entropy_per_token'


def count_packed_examples(segment_ids: jax.Array) -> jax.Array:
  """Counts the segments in i32[B, N]; padding, at the end, has id 0."""
  starts = jnp.diff(segment_ids, axis=1, prepend=0) != 0
  return jnp.sum(starts & (segment_ids != 0))


def accuracy(
  logits: jax.Array, targets: jax.Array, weights: jax.Array | None
) -> clu_metrics.Accuracy:
  """Returns the accuracy, with the loss's weight of each token.

  T5X's accuracy counts every token of nonzero weight once.

  Args:
    logits: f32[B, N, V].
    targets: i32[B, N].
    weights: f32[B, N], the weights of the loss; None: all ones.
  """
  right = jnp.argmax(logits, axis=-1) == targets
  if weights is None:
    return clu_metrics.Accuracy(total=jnp.sum(right), count=targets.size)
  return clu_metrics.Accuracy(
    total=jnp.sum(right * weights), count=jnp.sum(weights)
  )


def token_loss(
  logits: jax.Array, targets: jax.Array, weights: jax.Array
) -> clu_metrics.Average:
  """Returns the plain cross-entropy, a mean over tokens by loss weights.

  It includes no label smoothing, z-loss or memory loss, and it does not depend
  on the normalising factor or, over a whole data set, on the batch size.

  Args:
    logits: f32[B, N, V].
    targets: i32[B, N].
    weights: f32[B, N], the loss weights of the batch.
  """
  total, _, weight_sum = losses.compute_weighted_cross_entropy(
    logits, targets, weights
  )
  return clu_metrics.Average(total=total, count=weight_sum)


def compute_base_metrics(
  logits: jax.Array,
  targets: jax.Array,
  mask: jax.Array | None,
  loss: jax.Array,
  z_loss: jax.Array | None = None,
  segment_ids: Mapping[str, jax.Array | None] | None = None,
) -> metrics_lib.MetricsMap:
  """Returns T5X's metrics of one step.

  `loss` is the minimised loss, averaged over steps: with the normalising factor
  NUM_REAL_TARGET_TOKENS it is in nats per token. The loss_per_* metrics divide
  it by tokens again, as in T5X, and are meaningful only without a factor.
  `token_loss` has the same meaning with every factor.

  Args:
    logits: f32[B, N, V].
    targets: i32[B, N].
    mask: f32[B, N], the weights of the loss; None: all ones.
    loss: f32[], the loss of the step.
    z_loss: f32[], the z-loss in it.
    segment_ids: i32[B, N] for each side ('decoder', 'encoder'), 0 is padding.
  """
  examples, tokens = targets.shape[0], targets.size
  devices = jax.device_count()
  real_tokens = tokens if mask is None else jnp.sum(mask)
  rate = metrics_lib.TimeRate.from_model_output
  per_step = metrics_lib.AveragePerStep
  average = clu_metrics.Average
  metrics = {
    'accuracy': accuracy(logits, targets, mask),
    'loss': per_step(total=loss),
    'loss_per_nonpadding_target_token': average(total=loss, count=real_tokens),
    'loss_per_all_target_tokens': average(total=loss, count=tokens),
    'timing/seqs_per_second': rate(jnp.array(examples)),
    'timing/seqs_per_second_per_core': rate(jnp.array(examples / devices)),
    'timing/target_tokens_per_second': rate(jnp.array(tokens)),
    'timing/target_tokens_per_second_per_core': rate(
      jnp.array(tokens / devices)
    ),
    'timing/steps_per_second': metrics_lib.StepsPerTime.from_model_output(),
    'timing/seconds': metrics_lib.Time(),
    'timing/seqs': metrics_lib.Sum(jnp.array(examples)),
    'non_padding_fraction/loss_weights': average(
      total=real_tokens, count=tokens
    ),
  }
  if z_loss is not None:
    cross_entropy = loss - z_loss
    metrics |= {
      'z_loss': per_step(total=z_loss),
      'z_loss_per_all_target_tokens': average(total=z_loss, count=tokens),
      'cross_ent_loss': per_step(total=cross_entropy),
      'cross_ent_loss_per_all_target_tokens': average(
        total=cross_entropy, count=tokens
      ),
    }
  sides = {k: v for k, v in (segment_ids or {}).items() if v is not None}
  for side, ids in sides.items():
    metrics[f'effective_batch_size/{side}'] = per_step(
      total=count_packed_examples(ids.astype(jnp.int32))
    )
    metrics[f'non_padding_fraction/{side}'] = average(
      total=jnp.sum(ids != 0), count=ids.size
    )
  if sides:
    metrics['non_padding_fraction/overall'] = average(
      total=sum(jnp.sum(ids != 0) for ids in sides.values()),
      count=sum(ids.size for ids in sides.values()),
    )
  return metrics


def count_tokens(
  metrics: metrics_lib.MetricsMap, weights: jax.Array
) -> metrics_lib.MetricsMap:
  """Returns metrics whose number of real tokens is the sum of loss weights.

  With AVERAGE_PER_SEQUENCE the weights of the loss in `compute_base_metrics`
  add up to the number of sequences. T5X does not correct this.

  Args:
    metrics: from `compute_base_metrics`; other metrics are not changed.
    weights: f32[B, N], the loss weights of the batch.
  """
  tokens = jnp.sum(weights)
  counted = {
    name: metrics[name].replace(**{part: tokens})
    for name, part in (
      ('loss_per_nonpadding_target_token', 'count'),
      ('non_padding_fraction/loss_weights', 'total'),
    )
    if isinstance(metrics.get(name), clu_metrics.Average)
  }
  return {**metrics, **counted}


def compute_weighted_accuracy(
  logits: jax.Array, targets: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
  """Returns the weighted number of correct predictions, f32[].

  Args:
    logits: f32[B, N, V].
    targets: i32[B, N].
    weights: f32[B, N]; None: all ones.

  Raises:
    ValueError: the ranks do not fit.
  """
  if logits.ndim != targets.ndim + 1:
    raise ValueError(
      f'Incorrect shapes. Got shape {logits.shape} logits and {targets.shape} '
      'targets'
    )
  right = jnp.argmax(logits, axis=-1) == targets
  return jnp.sum(right if weights is None else right * weights)


def compute_metrics(
  logits: jax.Array,
  targets: jax.Array,
  weights: jax.Array | None,
  loss: jax.Array,
  weight_sum: jax.Array,
  additional_metrics: metrics_lib.MetricsMap,
) -> metrics_lib.MetricsMap:
  """Returns T5X's former metrics of a step, each a Sum, and additional ones.

  `compute_base_metrics` has taken their place, in T5X too.

  Args:
    logits: f32[B, N, V].
    targets: i32[B, N].
    weights: f32[B, N]; None: all ones.
    loss: f32[], the loss of the step.
    weight_sum: f32[], the sum of the weights.
    additional_metrics: more metrics.
  """
  values = {
    'loss': loss,
    'accuracy': compute_weighted_accuracy(logits, targets, weights),
    'weight_sum': weight_sum,
    'num_examples': targets.shape[0],
    'num_tokens': targets.size,
  }
  return {**metrics_lib.create_metrics_dict(values), **additional_metrics}
