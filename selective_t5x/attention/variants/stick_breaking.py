"""Stick-breaking attention: the nearest keys take their share first.

Shapes: B batch, N length, H heads, D head size. Source: Tan, Yang, Courville,
Panda, Shen, "Scaling Stick-Breaking Attention", arXiv 2410.17980, section 2.
"""

import jax
import jax.numpy as jnp

from selective_t5x.attention import checks, masks, reference, steps
from selective_t5x.attention.implementations import needs_every_key


def stick_breaking_weights(logits: jax.Array, visible: jax.Array) -> jax.Array:
  """Breaks a stick of length 1 between the keys, from the last to the first.

  weight[i, j] = sigmoid(z[i, j]) * prod_{j < k} (1 - sigmoid(z[i, k])), k over
  the visible keys; computed as log sigmoid(z[i, j]) - sum_k softplus(z[i, k]).

  Args:
    logits: f32[..., N], z; the last axis is the key, in order of position.
    visible: bool[..., N], which keys a query sees; broadcasts to the logits.

  Returns:
    As logits: zero or more, with a sum of at most 1; zero where not visible.
  """
  # Selected first too, so that nothing in a dead cell has a gradient.
  logits = jnp.where(visible, logits, 0)
  taken = jnp.where(visible, jax.nn.softplus(logits), 0)
  by_later = jax.lax.cumsum(taken[..., 1:], taken.ndim - 1, reverse=True)
  by_later = jnp.pad(by_later, [(0, 0)] * (taken.ndim - 1) + [(0, 1)])
  weights = jnp.exp(jax.nn.log_sigmoid(logits) - by_later)
  return jnp.where(visible, weights, 0)


@needs_every_key
def stick_breaking_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  scale: float | None = None,
  bias: jax.Array | None = None,
  segment_ids: jax.Array | None = None,
  position: jax.Array | None = None,
) -> jax.Array:
  """Attends to earlier tokens by `stick_breaking_weights`. Adds no parameter.

  As in the paper a token does not see itself and what is left of the stick is
  lost: the first token of a segment, which sees nothing, gives zero. Differs
  from the paper: positions are embedded, or biases added, as the network does;
  there are none. O(N^2) memory; the paper's kernel needs less.

  Gin: `ATTENTION = @attention.stick_breaking_attention`.

  Args:
    query: [B, N, H, D].
    key: [B, N, H, D].
    value: [B, N, H, D].
    scale: multiplies the logits; None for D ** -0.5.
    bias: added to the logits; broadcasts to [B, H, N, N].
    segment_ids: i32[B, N], 0 for padding, each run of equal ids a segment;
      None for one segment without padding.
    position: i32[B], for a step of cached decoding: query is then [B, 1, H, D],
      the token in this slot, and bias broadcasts to [B, H, 1, N].

  Returns:
    [B, N, H, D] in value's dtype, [B, 1, H, D] of a step; zero in padding rows.
    The logits are float32.

  Raises:
    ValueError: if the shapes do not fit together.
  """
  scale = checks.scale('stick_breaking_attention', scale, query)
  if position is not None:
    checks.step(query, key, value, bias, position)
    earlier = jnp.arange(key.shape[1]) < position[:, None]
    value = masks.zero_padding(value, earlier)
    logits = steps.query_logits(query, key, scale, bias)
    weights = stick_breaking_weights(logits, earlier[:, None, None])
  else:
    checks.shapes(query, key, value, bias, segment_ids)
    query, key, value = (
      masks.zero_padding(x, segment_ids) for x in (query, key, value)
    )
    logits = reference.attention_logits(query, key, scale, bias)
    earlier = ~jnp.eye(logits.shape[-1], dtype=bool)
    visible = masks.visible(logits.shape[-1], segment_ids) & earlier
    weights = stick_breaking_weights(logits, visible[:, None])
  out = jnp.einsum('bhij,bjhd->bihd', weights, value.astype(weights.dtype))
  return out.astype(value.dtype)
