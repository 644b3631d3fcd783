"""Attention of one more token to those before it: cached decoding.

Shapes: B batch, N cache slots, H heads, D head size. A row's tokens fill its
slots from 0; slots after the token's own are empty and never matter, whatever
they hold. Each function computes one row i of its parallel form.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from selective_t5x.attention import mesh
from selective_t5x.attention.arrays import Array, Scalar
from selective_t5x.attention.selection import Selection, of_heads, spread


def query_logits(
  query: Float[Array, 'B 1 H D'],
  key: Float[Array, 'B N H D'],
  scale: Scalar,
  bias: Float[Array, '...'] | None,
) -> Float[Array, 'B H 1 N']:
  """Returns scale * <query, key_j> + bias, f32[B, H, 1, N], for one query.

  A product and a sum, not a matrix product, so that empty slots can be masked
  after it: to mask the keys before would copy a whole cache at every step.

  Args:
    query: [B, 1, H, D].
    key: [B, N, H, D].
    scale: multiplies the products.
    bias: broadcasts to [B, H, 1, N]; None for none.
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
  """Returns the mean of the values in filled slots, [B, 1, H, D].

  Args:
    logits: f32[B, H, 1, N].
    value: [B, N, H, D].
    filled: bool[B, N], at least one slot of each row.
  """
  logits = jnp.where(filled[:, None, None], logits, -jnp.inf)
  weights = jnp.moveaxis(jax.nn.softmax(logits)[:, :, 0], 1, 2)[..., None]
  # Selected after the product: what lies in an empty slot may be NaN, and the
  # values need not be copied.
  parts = jnp.where(filled[..., None, None], weights * value, 0)
  return _sum(parts, axis=1)[:, None].astype(value.dtype)


def causal_step(
  query: Float[Array, 'B 1 H D'],
  key: Float[Array, 'B N H D'],
  value: Float[Array, 'B N H D'],
  *,
  scale: Scalar,
  bias: Float[Array, '...'] | None,
  position: Int[Array, ' B'],
  seen: Bool[Array, 'B N'] | bool = True,
) -> Float[Array, 'B 1 H D']:
  """Attends from the token at `position` to all up to itself.

  Args:
    query: [B, 1, H, D].
    key: [B, N, H, D], the token's own included.
    value: [B, N, H, D].
    scale: multiplies the logits.
    bias: added to the logits; broadcasts to [B, H, 1, N].
    position: i32[B], the slot of each row's token.
    seen: bool[B, N], to which of these, its own among them; True for all.

  Returns:
    [B, 1, H, D] in value's dtype.
  """
  filled = jnp.arange(key.shape[1]) <= position[:, None]
  return _attend(query_logits(query, key, scale, bias), value, filled & seen)


def selective_step(
  query: Float[Array, 'B 1 H D'],
  key: Float[Array, 'B N H D'],
  value: Float[Array, 'B N H D'],
  *,
  selection: Selection,
  scale: Scalar,
  bias: Float[Array, '...'] | None,
  position: Int[Array, ' B'],
  masking: Float[Array, 'B *G N'],
) -> tuple[Float[Array, 'B 1 H D'], Float[Array, 'B *G N']]:
  """Attends under what earlier tokens have masked, then adds its own masking.

  Args:
    query: [B, 1, H, D].
    key: [B, N, H, D], the token's own included.
    value: [B, N, H, D].
    selection: its query [B, 1, G, E], key [B, N, G, E], bias broadcasts to
      [B, G, 1, N].
    scale: multiplies the logits.
    bias: added to the logits; broadcasts to [B, H, 1, N].
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
    asked = query_logits(selection.query, selection.key, selection.scale, None)
  else:
    asked = of_heads(logits, selection.head)
  asked = asked if selection.bias is None else asked + selection.bias
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
  scores = jax.nn.relu(asked[:, :, 0]) if relu else asked[:, :, 0]
  masking += jnp.where(may_mask[:, None], scores, 0)
  return out, masking.reshape(shape)
