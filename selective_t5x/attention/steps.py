"""Attention of one more token to those before it: cached decoding.

Shapes: B batch, N cache slots, H heads, D head size. A row's tokens fill its
slots from 0; slots after the token's own are empty and never matter, whatever
they hold. Each function computes one row i of its parallel form.
"""

import jax
import jax.numpy as jnp

from selective_t5x.attention import masks
from selective_t5x.attention.reference import attend, attention_logits
from selective_t5x.attention.selection import Selection


def causal_step(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  scale: float,
  bias: jax.Array | None,
  position: jax.Array,
) -> jax.Array:
  """Attends from the token at `position` to all up to itself.

  Args:
    query: [B, 1, H, D].
    key: [B, N, H, D], the token's own included.
    value: [B, N, H, D].
    scale: multiplies the logits.
    bias: added to the logits; broadcasts to [B, H, 1, N].
    position: i32[B], the slot of each row's token.

  Returns:
    [B, 1, H, D] in value's dtype.
  """
  filled = jnp.arange(key.shape[1]) <= position[:, None]
  key, value = (masks.zero_padding(x, filled) for x in (key, value))
  logits = attention_logits(query, key, scale, bias)
  return attend(logits, value, filled[:, None])


def selective_step(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  selection: Selection,
  scale: float,
  bias: jax.Array | None,
  position: jax.Array,
  masking: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Attends under what earlier tokens have masked, then adds its own masking.

  Args:
    query: [B, 1, H, D].
    key: [B, N, H, D], the token's own included.
    value: [B, N, H, D].
    selection: G = 1; its query [B, 1, 1, E], key [B, N, 1, E], bias broadcasts
      to [B, 1, 1, N].
    scale: multiplies the logits.
    bias: added to the logits; broadcasts to [B, H, 1, N].
    position: i32[B], the slot of each row's token.
    masking: f32[B, N], row `position` of F: the selection scores of all earlier
      tokens, summed.

  Returns:
    [B, 1, H, D] in value's dtype, and f32[B, N], the next row of F.
  """
  slots = jnp.arange(key.shape[1])
  filled = slots <= position[:, None]
  key, value = (masks.zero_padding(x, filled) for x in (key, value))
  masking = masks.zero_padding(masking, filled)
  logits = attention_logits(query, key, scale, bias)
  out = attend(logits - masking[:, None, None], value, filled[:, None])
  asked = attention_logits(
    selection.query,
    masks.zero_padding(selection.key, filled),
    selection.scale,
    selection.bias,
  )
  # Neither itself nor the first token, as in selection.selection_scores.
  may_mask = (slots > 0) & (slots < position[:, None])
  scores = jnp.where(may_mask, jax.nn.relu(asked[:, 0, 0]), 0)
  return out, masking + scores
