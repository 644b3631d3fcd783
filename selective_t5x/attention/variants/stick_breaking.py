"""Stick-breaking attention: the nearest keys take their share first.

Shapes: B batch, N length, H heads, D head size. Source: Tan, Yang, Courville,
Panda, Shen, "Scaling Stick-Breaking Attention", arXiv 2410.17980, section 2.
"""

import jax
import jax.numpy as jnp

from selective_t5x.attention import (
  capabilities,
  checks,
  masks,
  nonfinite,
  reference,
  steps,
)
from selective_t5x.errors import UserError

# What becomes of the part of the stick that no key has taken.
NONE, VALUE, BIAS = 'none', 'value', 'bias'
REMAINDERS = (NONE, VALUE, BIAS)


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


@capabilities.declare(needs_every_key=True)
def stick_breaking_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  scale: float | None = None,
  bias: jax.Array | None = None,
  segment_ids: jax.Array | None = None,
  position: jax.Array | None = None,
  remainder: str = NONE,
  remainder_bias: jax.Array | None = None,
) -> jax.Array:
  """Attends to earlier tokens by `stick_breaking_weights`.

  A token does not see itself. What is left of its stick, 1 minus the sum of its
  weights, which is all of it for the first token of a segment, goes where
  `remainder` says:

  - 'none': it is lost, so that the first token gives zero. Ours, the simplest.
  - 'value': to the token's own value. As in the official tests of the authors'
    kernel (github.com/shawntan/stickbreaking-attention) and in an earlier
    configuration of their model.
  - 'bias': to a learned vector of each head. As in the authors' model
    (github.com/IBM/dolomite-engine), which then normalises each head:
    `stick_breaking_heads.StickBreakingHeads` has both.

  Which of the three the text of the paper has was not seen. Differs from the
  paper: positions are embedded, or biases added, as the network does; there are
  none. O(N^2) memory; the authors' kernel needs less.

  Gin: gin/attention/stick_breaking.gin, stick_breaking_value.gin,
  stick_breaking_bias.gin.

  Args, beside those of `attention.api`:
    remainder: 'none', 'value' or 'bias'.
    remainder_bias: [H, D], with 'bias' alone.
  """
  _check_remainder(remainder, remainder_bias, query)
  scale = checks.scale('stick_breaking_attention', scale, query)
  own = value
  if position is not None:
    checks.step(query, key, value, bias, position)
    if remainder == VALUE:
      own = jnp.take_along_axis(value, position[:, None, None, None], axis=1)
    earlier = jnp.arange(key.shape[1]) < position[:, None]
    value = masks.zero_padding(value, earlier)
    logits = steps.query_logits(query, key, scale, bias)
    visible = earlier[:, None, None]
  else:
    checks.shapes(query, key, value, bias, segment_ids)
    query, key, value, _, faults = nonfinite.clean_heads(
      query, key, value, live=segment_ids
    )
    own = value
    logits = reference.attention_logits(query, key, scale, bias)
    earlier = ~jnp.eye(logits.shape[-1], dtype=bool)
    visible = masks.visible(logits.shape[-1], segment_ids) & earlier
    visible = visible[:, None]
  weights = stick_breaking_weights(logits, visible)
  out = jnp.einsum('bhij,bjhd->bihd', weights, value.astype(weights.dtype))
  if remainder != NONE:
    # prod (1 - sigmoid(z)), and so 1 - sum(weights) without its cancellation.
    taken = jnp.where(visible, jax.nn.softplus(logits), 0)
    left = jnp.exp(-jnp.sum(taken, axis=-1)).swapaxes(1, 2)[..., None]
    # Padding sees nothing, so it would have all of its stick left.
    left = masks.zero_padding(left, segment_ids)
    out += left * (own if remainder == VALUE else remainder_bias)
  out = out.astype(value.dtype)
  if position is not None:
    return out
  seen = visible[:, 0]
  if remainder == VALUE:
    seen = masks.visible(query.shape[1], segment_ids)
  reached, _ = faults.reach(nonfinite.where_visible(seen))
  return nonfinite.mark(out, reached)


def _check_remainder(remainder, remainder_bias, query):
  """Refuses a remainder that is not there, or a bias that nothing reads."""
  name = f'stick_breaking_attention.remainder = {remainder!r}'
  if remainder not in REMAINDERS:
    raise UserError(f"{name}: expected 'none', 'value' or 'bias'")
  if (remainder_bias is not None) != (remainder == BIAS):
    raise UserError(
      f'{name}, but there is {"no" if remainder_bias is None else "a"} learned '
      "bias: expected one with 'bias' and with nothing else "
      '(stick_breaking_heads.StickBreakingHeads.remainder must be the same)'
    )
  if remainder_bias is not None and remainder_bias.shape != query.shape[2:]:
    raise ValueError(
      f'attention: remainder_bias must be [H, D] = {list(query.shape[2:])}, '
      f'got {list(remainder_bias.shape)}'
    )
