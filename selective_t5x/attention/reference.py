"""The reference attention, O(N^2), that tests compare faster paths with.

Shapes: B batch, N length, H heads, D head size. Logits, F and the softmax are
computed in float32 (in float64 for float64 inputs).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Shaped

from selective_t5x.attention import masks, memory, nonfinite
from selective_t5x.attention.arrays import Array, Scalar
from selective_t5x.attention.distance_bias import DistanceBias, as_array
from selective_t5x.attention.selection import Selection, masking_matrix, spread


def attention_logits(
  query: Float[Array, 'B Q H D'],
  key: Float[Array, 'B N H D'],
  scale: Scalar,
  bias: Float[Array, '...'] | DistanceBias | None,
) -> Float[Array, 'B H Q N']:
  """Returns scale * <query_i, key_j> + bias, f32[B, H, Q, N], unmasked."""
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  logits = scale * jnp.einsum(
    'bihd,bjhd->bhij', query.astype(dtype), key.astype(dtype)
  )
  bias = as_array(bias, query.shape[1], key.shape[1])
  return logits if bias is None else logits + bias


def attend(
  logits: Float[Array, 'B H Q N'],
  value: Float[Array, 'B N H D'],
  visible: Bool[Array, '#B Q N'],
) -> Float[Array, 'B Q H D']:
  """Averages the visible values under the softmax of the logits.

  Args:
    logits: f32[B, H, Q, N], axis 2 the query, before the mask.
    value: [B, N, H, D].
    visible: bool[B, Q, N] (or with a first axis of 1), which keys a query sees.

  Returns:
    [B, Q, H, D] of value's dtype; finite also where a query sees no key.
  """
  # Finite: a padding row sees no key, and a softmax of -inf alone is NaN.
  logits = jnp.where(visible[:, None], logits, jnp.finfo(logits.dtype).min)
  weights = jax.nn.softmax(logits)
  out = jnp.einsum('bhij,bjhd->bihd', weights, value.astype(weights.dtype))
  return out.astype(value.dtype)


def full_attention(query, key, value, *, scale, bias, query_ids, key_ids):
  """Attention to a whole segment; arguments as in api.full_attention."""
  (query,), query_faults = nonfinite.clean(query, live=query_ids)
  (key, value), key_faults = nonfinite.clean(key, value, live=key_ids)
  logits = attention_logits(query, key, scale, bias)
  visible = (query_ids[:, :, None] == key_ids[:, None]) & (
    query_ids[:, :, None] != 0
  )
  out = attend(logits, value, visible)
  # A query whose segment has no key sees nothing: its output is zero.
  out = masks.zero_padding(out, jnp.any(visible, axis=-1))
  reached, _ = nonfinite.Faults(query_faults, key_faults).reach(
    nonfinite.where_visible(visible)
  )
  return nonfinite.mark(out, reached)


def attention_where(
  query: Float[Array, 'B N H D'],
  key: Float[Array, 'B N H D'],
  value: Float[Array, 'B N H D'],
  *,
  scale: Scalar,
  bias: Float[Array, '...'] | DistanceBias | None,
  visible: Bool[Array, '#B N N'],
  segment_ids: Shaped[Array, 'B N'] | None,
) -> Float[Array, 'B N H D']:
  """Plain softmax attention to the keys that a query sees.

  Args:
    query: [B, N, H, D].
    key: [B, N, H, D].
    value: [B, N, H, D].
    scale: multiplies the logits.
    bias: added to the logits; broadcasts to [B, H, N, N], or a DistanceBias; or
      None.
    visible: bool[B or 1, N, N], axis 1 the query.
    segment_ids: i32[B, N], 0 for padding; None without padding.

  Returns:
    [B, N, H, D] in value's dtype, zero in padding rows.
  """
  query, key, value, _, faults = nonfinite.clean_heads(
    query, key, value, live=segment_ids
  )
  logits = attention_logits(query, key, scale, bias)
  out = attend(logits, value, visible)
  out = masks.zero_padding(out, segment_ids)
  reached, _ = faults.reach(nonfinite.where_visible(visible))
  return nonfinite.mark(out, reached)


def causal_attention(query, key, value, *, scale, bias, segment_ids, prefix):
  """Plain causal softmax attention; arguments as in api.causal_attention."""
  return attention_where(
    query,
    key,
    value,
    scale=scale,
    bias=bias,
    visible=masks.visible(query.shape[1], segment_ids, prefix),
    segment_ids=segment_ids,
  )


def selective_attention(
  query: Float[Array, 'B N H D'],
  key: Float[Array, 'B N H D'],
  value: Float[Array, 'B N H D'],
  *,
  selection: Selection,
  scale: Scalar,
  bias: Float[Array, '...'] | DistanceBias | None,
  segment_ids: Shaped[Array, 'B N'] | None,
  memory_tau: Scalar | None,
) -> tuple[
  Float[Array, 'B N H D'], Float[Array, 'B N'] | None, Float[Array, 'B G N N']
]:
  """Attention under selection; arguments as in `blocked.attention`.

  Returns:
    (out [B, N, H, D], M f32[B, N] or None, F f32[B, G, N, N]); M is the mean
    over the G.
  """
  query, key, value, selection, faults = nonfinite.clean_heads(
    query, key, value, selection, live=segment_ids
  )
  logits = attention_logits(query, key, scale, bias)
  scores = attention_logits(
    selection.query, selection.key, selection.scale, selection.bias
  )
  masking = jax.vmap(
    lambda x: masking_matrix(
      x, segment_ids=segment_ids, constraints=selection.constraints
    ),
    1,
    1,
  )(scores)
  visible = masks.visible(logits.shape[-1], segment_ids)
  out = attend(logits - spread(masking, logits.shape[1]), value, visible)
  out = masks.zero_padding(out, segment_ids)
  reached, rows = faults.reach(nonfinite.where_visible(visible))
  seen = None
  if memory_tau is not None:
    seen = jax.vmap(
      lambda x: memory.visible_tokens(x, memory_tau, segment_ids=segment_ids),
      1,
    )(masking)
    seen = nonfinite.mark(jnp.mean(seen, axis=0), jnp.any(rows, axis=-1))
  marked = nonfinite.mark(masking, rows.swapaxes(1, 2))
  masking = jnp.where(visible[:, None], marked, 0)
  return nonfinite.mark(out, reached), seen, masking
