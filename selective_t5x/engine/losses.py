"""Cross-entropy with z-loss and label smoothing, and its normalising factor."""

import dataclasses
import enum
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp


def cross_entropy_with_logits(
  logits: jax.Array, targets: jax.Array, z_loss: float = 0.0
) -> tuple[jax.Array, jax.Array]:
  """Computes the cross-entropy with a distribution, plus z_loss * log(Z)^2.

  The z-loss keeps log(Z), the log of the softmax normaliser, near zero.

  Args:
    logits: f32[..., V].
    targets: f32[..., V], a distribution over classes, usually one-hot.
    z_loss: coefficient of the auxiliary term.

  Returns:
    (loss including the z-loss, the z-loss alone), both f32[...].
  """
  log_z = jax.nn.logsumexp(logits, axis=-1)
  loss = jnp.sum(targets * (log_z[..., None] - logits), axis=-1)
  z_term = z_loss * jnp.square(log_z)
  return loss + z_term, z_term


def compute_weighted_cross_entropy(
  logits: jax.Array,
  targets: jax.Array,
  weights: jax.Array | None = None,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
  loss_normalizing_factor: float | jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Computes the sum over tokens of the weighted cross-entropy.

  With label smoothing the entropy of the smoothed target is subtracted, so
  that a perfect prediction costs zero.

  Args:
    logits: f32[B, N, V].
    targets: i32[B, N].
    weights: f32[B, N]; None: all ones.
    label_smoothing: probability spread evenly over the other classes.
    z_loss: coefficient of the auxiliary z-loss.
    loss_normalizing_factor: divisor of both sums; None: 1.

  Returns:
    (loss, z-loss, sum of the weights), scalars.

  Raises:
    ValueError: the ranks of logits and targets do not fit.
  """
  if logits.ndim != targets.ndim + 1:
    raise ValueError(
      f'Incorrect shapes: logits {logits.shape}, targets {targets.shape}; '
      'expected one more axis in logits'
    )
  vocab_size = logits.shape[-1]
  on_value = 1.0 - label_smoothing
  off_value = label_smoothing / max(vocab_size - 1, 1)
  # sum_v target_v * (log_z - logit_v), without materialising one-hot targets.
  log_z = jax.nn.logsumexp(logits, axis=-1)
  target_logits = jnp.take_along_axis(
    logits, targets[..., None].astype(jnp.int32), axis=-1
  )
  loss = log_z - (on_value - off_value) * target_logits[..., 0]
  if label_smoothing:
    loss -= off_value * jnp.sum(logits, axis=-1)
    loss += on_value * math.log(on_value) + (
      vocab_size - 1
    ) * off_value * math.log(off_value + 1e-20)
  z_term = z_loss * jnp.square(log_z)
  loss += z_term
  weight_sum = targets.size
  if weights is not None:
    loss, z_term = loss * weights, z_term * weights
    weight_sum = jnp.sum(weights)
  total, z_total = jnp.sum(loss), jnp.sum(z_term)
  if loss_normalizing_factor is not None:
    total /= loss_normalizing_factor
    z_total /= loss_normalizing_factor
  return total, z_total, weight_sum


@enum.unique
class SpecialLossNormalizingFactor(enum.Enum):
  """Normalising factors that depend on the batch.

  NUM_REAL_TARGET_TOKENS divides by the sum of the loss weights,
  NUM_TOTAL_TARGET_TOKENS by batch times length (padding included), and
  AVERAGE_PER_SEQUENCE averages first within each sequence, then over them.
  """

  NUM_REAL_TARGET_TOKENS = 1
  NUM_TOTAL_TARGET_TOKENS = 2
  AVERAGE_PER_SEQUENCE = 3


@dataclasses.dataclass(frozen=True)
class WholeBatchFactor:
  """A special normalising factor for parts of a batch.

  Each part weights its tokens by `special`, and all of them are divided by the
  whole batch's number, so that the parts' losses add up to the batch's.

  Attributes:
    special: the kind of factor.
    number: its value for the whole batch, f32[] or a number.
  """

  special: SpecialLossNormalizingFactor
  number: float | jax.Array


def convert_special_loss_normalizing_factor_to_enum(
  x: str,
) -> SpecialLossNormalizingFactor:
  """Returns the factor of that name (gin files write it as a string)."""
  try:
    return SpecialLossNormalizingFactor[x.upper()]
  except KeyError:
    names = ', '.join(f.name for f in SpecialLossNormalizingFactor)
    raise ValueError(
      f'Could not convert string {x!r} to SpecialLossNormalizingFactor; '
      f'expected one of {names}'
    ) from None


def _sum_weights_per_segment(positions, segment_ids, weights):
  """Gives each token the sum of the weights of its segment.

  Args:
    positions: i32[B, N], 0 at the first token of a segment.
    segment_ids: i32[B, N], 0 for padding.
    weights: f32[B, N].

  Returns:
    f32[B, N], 0 at padding.
  """
  live = segment_ids != 0
  starts = (positions == 0) & live
  # Segments are contiguous, so counting their starts numbers them from 0.
  index = jnp.cumsum(starts, axis=1) - 1
  sums = jax.vmap(
    lambda i, w: jax.ops.segment_sum(w, i, num_segments=i.shape[0])
  )(index, jnp.where(live, weights, 0.0))
  return jnp.where(live, jnp.take_along_axis(sums, index, axis=1), 0.0)


def factor_for_parts_of(
  loss_normalizing_factor: float
  | int
  | str
  | SpecialLossNormalizingFactor
  | None,
  batch: Mapping[str, jax.Array],
) -> float | int | WholeBatchFactor | None:
  """Returns the factor with which the losses of a batch's parts add up.

  For arguments see `get_loss_normalizing_factor_and_weights`. A number or None
  is the same for every part.
  """
  factor = loss_normalizing_factor
  if not isinstance(factor, str | SpecialLossNormalizingFactor):
    return factor
  if isinstance(factor, str):
    factor = convert_special_loss_normalizing_factor_to_enum(factor)
  number, _ = get_loss_normalizing_factor_and_weights(factor, batch)
  return WholeBatchFactor(factor, number)


def get_loss_normalizing_factor_and_weights(
  loss_normalizing_factor: float
  | int
  | str
  | SpecialLossNormalizingFactor
  | WholeBatchFactor
  | None,
  batch: Mapping[str, jax.Array],
) -> tuple[float | jax.Array | None, jax.Array | None]:
  """Turns a normalising factor, possibly special, into a number and weights.

  The loss of a batch whose weights are all 0 is divided by 1, so that it is 0.
  T5X divides it by 0.

  Args:
    loss_normalizing_factor: a number, None, a special factor or its name, or
      the factor of the batch that this one is a part of.
    batch: has decoder_target_tokens i32[B, N]; may have decoder_loss_weights
      f32[B, N] (else every token but padding counts 1) and, when packed,
      decoder_segment_ids and decoder_positions, i32[B, N].

  Returns:
    (divisor of the loss, weights f32[B, N] or None).
  """
  weights = batch.get('decoder_loss_weights')
  factor = loss_normalizing_factor
  if isinstance(factor, WholeBatchFactor):
    _, weights = get_loss_normalizing_factor_and_weights(factor.special, batch)
    return factor.number, weights
  if not isinstance(factor, str | SpecialLossNormalizingFactor):
    return factor, weights
  if isinstance(factor, str):
    factor = convert_special_loss_normalizing_factor_to_enum(factor)
  targets = batch['decoder_target_tokens']
  weights = token_weights(batch)
  if factor == SpecialLossNormalizingFactor.NUM_REAL_TARGET_TOKENS:
    return _sum_or_1(weights), weights
  if factor == SpecialLossNormalizingFactor.NUM_TOTAL_TARGET_TOKENS:
    return targets.size, weights
  if 'decoder_segment_ids' in batch:
    per_sequence = _sum_weights_per_segment(
      batch['decoder_positions'], batch['decoder_segment_ids'], weights
    )
  else:
    per_sequence = jnp.sum(weights, axis=-1, keepdims=True)
  weights = jnp.where(
    per_sequence > 0, weights / jnp.where(per_sequence > 0, per_sequence, 1), 0
  )
  return _sum_or_1(weights), weights


def token_weights(batch: Mapping[str, jax.Array]) -> jax.Array:
  """Returns the loss weights of a batch's targets, f32[B, N].

  They are decoder_loss_weights; in a batch without them every token but padding
  counts 1.
  """
  weights = batch.get('decoder_loss_weights')
  if weights is None:
    return jnp.asarray(batch['decoder_target_tokens'] > 0, jnp.float32)
  return weights


def _sum_or_1(weights: jax.Array) -> jax.Array:
  """Returns the sum of weights, or 1 if all of them are 0."""
  total = jnp.sum(weights)
  return jnp.where(total == 0, 1, total)
