"""What T5X measures of a step: loss, accuracy, packing, speed."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics

from t5x import metrics as metrics_lib


def count_packed_examples(segment_ids: jax.Array) -> jax.Array:
  """Counts the segments in i32[B, N]; padding, at the end, has id 0."""
  starts = jnp.diff(segment_ids, axis=1, prepend=0) != 0
  return jnp.sum(starts & (segment_ids != 0))


def compute_base_metrics(
  logits: jax.Array,
  targets: jax.Array,
  mask: jax.Array | None,
  loss: jax.Array,
  z_loss: jax.Array | None = None,
  segment_ids: Mapping[str, jax.Array | None] | None = None,
) -> metrics_lib.MetricsMap:
  """Returns T5X's metrics of one step.

  `loss` is what is minimised, averaged over steps: with the normalising factor
  NUM_REAL_TARGET_TOKENS it is nats per token. The loss_per_* metrics divide
  it by tokens once more, as in T5X, and mean something without a factor only.

  Args:
    logits: f32[B, N, V].
    targets: i32[B, N].
    mask: f32[B, N], the loss weights, or None for all ones.
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
    'accuracy': clu_metrics.Accuracy.from_model_output(
      logits=logits, labels=targets.astype(jnp.int32), mask=mask
    ),
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
