"""The written-out O(N^2) attention that every faster path is tested against.

Shapes: B batch, N length, H heads, D head size. Logits, F and the softmax are
computed in float32 (in float64 for float64 inputs).
"""

import jax
import jax.numpy as jnp

from selective_t5x.attention import masks, memory, selection


def attention_logits(query, key, scale, bias):
  """Returns scale * <query_i, key_j> + bias, f32[B, H, N, N], unmasked."""
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  logits = scale * jnp.einsum(
    'bihd,bjhd->bhij', query.astype(dtype), key.astype(dtype)
  )
  return logits if bias is None else logits + bias


def attend(logits, value, segment_ids, prefix=None):
  """Averages the visible values under the softmax of the logits.

  Args:
    logits: f32[B, H, N, N], axis 2 the query, before the causal mask.
    value: [B, N, H, D].
    segment_ids: i32[B, N], 0 for padding; None for one segment.
    prefix: i32[B, N], 1 for tokens that see each other; None for no token.

  Returns:
    [B, N, H, D] of value's dtype; zero in padding rows.
  """
  visible = masks.visible(logits.shape[-1], segment_ids, prefix)[:, None]
  # Finite: a padding row sees no key, and a softmax of -inf alone is NaN.
  logits = jnp.where(visible, logits, jnp.finfo(logits.dtype).min)
  weights = jax.nn.softmax(logits)
  out = jnp.einsum('bhij,bjhd->bihd', weights, value.astype(weights.dtype))
  return masks.zero_padding(out, segment_ids).astype(value.dtype)


def causal_attention(query, key, value, *, scale, bias, segment_ids, prefix):
  """Plain causal softmax attention; arguments as in api.causal_attention."""
  query, key, value = (
    masks.zero_padding(x, segment_ids) for x in (query, key, value)
  )
  logits = attention_logits(query, key, scale, bias)
  return attend(logits, value, segment_ids, prefix)


def selective_attention(
  query,
  key,
  value,
  *,
  scale,
  bias,
  segment_ids,
  selection_head,
  memory_tau,
  return_masking,
):
  """Selective attention; arguments as in api.selective_attention."""
  query, key, value = (
    masks.zero_padding(x, segment_ids) for x in (query, key, value)
  )
  logits = attention_logits(query, key, scale, bias)
  masking = selection.masking_matrix(
    logits[:, selection_head], segment_ids=segment_ids
  )
  out = (attend(logits - masking[:, None], value, segment_ids),)
  if memory_tau is not None:
    out += (
      memory.visible_tokens(masking, memory_tau, segment_ids=segment_ids),
    )
  if return_masking:
    out += (masking,)
  return out if len(out) > 1 else out[0]
