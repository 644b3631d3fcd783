"""Attention in a decoding step: one new token reads a KV cache.

Shapes: B batch, N cache slots, H heads, D head size. A row's tokens fill its
slots from 0. Slots after the token's own are empty; their content never
matters. Each function computes one row i of its parallel form.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from selective_t5x.attention import mesh
from selective_t5x.attention.arrays import Array, Scalar
from selective_t5x.attention.distance_bias import DistanceBias, of_step
from selective_t5x.attention.selection import Selection, of_heads, spread


def query_logits(
  query: Float[Array, 'B 1 H D'],
  key: Float[Array, 'B N H D'],
  scale: Scalar,
  bias: Float[Array, '...'] | None,
) -> Float[Array, 'B H 1 N']:
  """Returns scale * <query, key_j> + bias, f32[B, H, 1, N], for one query.

  It is an elementwise product and a sum, not a matrix product, so that empty
  slots can be masked afterwards. Masking the keys first would copy the whole
  cache at every step.

  Args:
    query: [B, 1, H, D].
    key: [B, N, H, D].
    scale: multiplies the products.
    bias: broadcasts to [B, H, 1, N]; None for no bias.
  """
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  products = _sum(query.astype(dtype) * key.astype(dtype), axis=3)
  logits = scale * jnp.moveaxis(products, 1, 2)[:, :, None]
  return logits if bias is None else logits + bias


def _sum(x, axis):
  """Sums an axis and drops it."""
  if mesh.platform() == 'cpu':
    # XLA:CPU adds halves two to three times faster than it reduces.
    while x.shape[axis] > 1 and x.shape[axis] % 2 == 0:
      left, right = jnp.split(x, 2, axis)
      x = left + right
  return jnp.sum(x, axis)


def _attend(logits, value, filled):
  """Averages the values of filled slots by their softmax, [B, 1, H, D].

  Args:
    logits: f32[B, H, 1, N].
    value: [B, N, H, D].
    filled: bool[B, N], at least one slot of each row.
  """
  logits = jnp.where(filled[:, None, None], logits, -jnp.inf)
  weights = jnp.moveaxis(jax.nn.softmax(logits)[:, :, 0], 1, 2)[..., None]
  # Masked after the product: an empty slot may hold NaN, and masking the values
  # first would copy them.
  parts = jnp.where(filled[..., None, None], weights * value, 0)
  return _sum(parts, axis=1)[:, None].astype(value.dtype)


def causal_step(
  query: Float[Array, 'B 1 H D'],
  key: Float[Array, 'B N H D'],
  value: Float[Array, 'B N H D'],
  *,
  scale: Scalar,
  bias: Float[Array, '...'] | DistanceBias | None,
  position: Int[Array, ' B'],
  seen: Bool[Array, 'B N'] | bool = True,
) -> Float[Array, 'B 1 H D']:
  """Attends from the token at `position` to all tokens up to itself.

  Args:
    query: [B, 1, H, D].
    key: [B, N, H, D], the token's own included.
    value: [B, N, H, D].
    scale: multiplies the logits.
    bias: added to the logits; broadcasts to [B, H, 1, N], or a DistanceBias.
    position: i32[B], the slot of each row's token.
    seen: bool[B, N], which keys it sees, including its own; True for all.

  Returns:
    [B, 1, H, D] in value's dtype.
  """
  filled = jnp.arange(key.shape[1]) <= position[:, None]
  bias = of_step(bias, position, key.shape[1])
  return _attend(query_logits(query, key, scale, bias), value, filled & seen)


def selective_step(
  query: Float[Array, 'B 1 H D'],
  key: Float[Array, 'B N H D'],
  value: Float[Array, 'B N H D'],
  *,
  selection: Selection,
  scale: Scalar,
  bias: Float[Array, '...'] | DistanceBias | None,
  position: Int[Array, ' B'],
  masking: Float[Array, 'B *G N'],
) -> tuple[Float[Array, 'B 1 H D'], Float[Array, 'B *G N']]:
  """Attends with the masking of earlier tokens, then adds the token's own.

  Args:
    query: [B, 1, H, D].
    key: [B, N, H, D], the token's own included.
    value: [B, N, H, D].
    selection: its query [B, 1, G, E], key [B, N, G, E], bias broadcasts to
      [B, G, 1, N].
    scale: multiplies the logits.
    bias: added to the logits; broadcasts to [B, H, 1, N], or a DistanceBias.
    position: i32[B], the slot of each row's token.
    masking: f32[B, N], row `position` of F: the selection scores of all earlier
      tokens, summed; f32[B, G, N] where G > 1.

  Returns:
    [B, 1, H, D] in value's dtype, and the next row of F, as masking.
  """
  slots = jnp.arange(key.shape[1])
  filled = slots <= position[:, None]
  shape = masking.shape
  masking = jnp.where(
    filled[:, None], masking.reshape(shape[0], -1, shape[-1]), 0
  )
  logits = query_logits(query, key, scale, None)
  if selection.head is None:
    selection_logits = query_logits(
      selection.query, selection.key, selection.scale, None
    )
  else:
    selection_logits = of_heads(logits, selection.head)
  selection_bias = of_step(selection.bias, position, key.shape[1])
  if selection_bias is not None:
    selection_logits += selection_bias
  bias = of_step(bias, position, key.shape[1])
  logits = logits if bias is None else logits + bias
  masked = spread(masking, logits.shape[1])[:, :, None]
  out = _attend(logits - masked, value, filled)
  # As in selection.selection_scores.
  relu, protect_bos, protect_self = selection.constraints
  may_mask = filled
  if protect_self:
    may_mask &= slots < position[:, None]
  if protect_bos:
    may_mask &= slots > 0
  scores = (
    jax.nn.relu(selection_logits[:, :, 0])
    if relu
    else selection_logits[:, :, 0]
  )
  masking += jnp.where(may_mask[:, None], scores, 0)
  return out, masking.reshape(shape)
