"""Stick-breaking attention: the nearest keys take their share first.

Shapes: B batch, N length, H heads, D head size. Source: Tan, Yang, Courville,
Panda, Shen, "Scaling Stick-Breaking Attention", arXiv 2410.17980, section 2.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from selective_t5x.attention import (
  capabilities,
  checks,
  masks,
  nonfinite,
  reference,
  steps,
)
from selective_t5x.attention.arrays import Array, Setting
from selective_t5x.errors import UserError

# Where the part of the stick goes that no key takes.
NONE, VALUE, BIAS = 'none', 'value', 'bias'
REMAINDERS = (NONE, VALUE, BIAS)


def stick_breaking_weights(
  logits: Float[Array, '*rows N'], visible: Bool[Array, '*#rows #N']
) -> Float[Array, '*rows N']:
  """Breaks a stick of length 1 between the keys, from the last to the first.

  weight[i, j] = sigmoid(z[i, j]) * prod_{j < k} (1 - sigmoid(z[i, k])), k over
  the visible keys; computed as log sigmoid(z[i, j]) - sum_k softplus(z[i, k]).

  Args:
    logits: f32[..., N], z; the last axis is the key, in order of position.
    visible: bool[..., N], which keys a query sees; broadcasts to the logits.

  Returns:
    As logits: zero or more, with a sum of at most 1; zero where not visible.
  """
  # Masked first too, so that invisible logits have no gradient.
  logits = jnp.where(visible, logits, 0)
  shares = jnp.where(visible, jax.nn.softplus(logits), 0)
  later_shares = jax.lax.cumsum(shares[..., 1:], shares.ndim - 1, reverse=True)
  later_shares = jnp.pad(later_shares, [(0, 0)] * (shares.ndim - 1) + [(0, 1)])
  weights = jnp.exp(jax.nn.log_sigmoid(logits) - later_shares)
  return jnp.where(visible, weights, 0)


@capabilities.declare(needs_every_key=True)
def stick_breaking_attention(
  query: Array,
  key: Array,
  value: Array,
  *,
  scale: Setting | None = None,
  bias: Array | None = None,
  segment_ids: Array | None = None,
  position: Array | None = None,
  remainder: str = NONE,
  remainder_bias: Array | None = None,
) -> Array:
  """Attends to earlier tokens by `stick_breaking_weights`.

  A token does not see itself. The rest of its stick, 1 minus the sum of its
  weights (all of it for the first token of a segment), depends on `remainder`:

  - 'none': it is lost, so the first token gives zero. This is ours, the
    simplest.
  - 'value': it weighs the token's own value, as in the official tests of the
    authors' kernel (github.com/shawntan/stickbreaking-attention) and in an
    earlier configuration of their model.
  - 'bias': it weighs a learned vector of each head, as in the authors' model
    (github.com/IBM/dolomite-engine), which then normalises each head:
    `stick_breaking_heads.StickBreakingHeads` has both.

  We have not seen which of the three the text of the paper has. Differs from
  the paper, which has no positions: the network may embed positions or add
  biases. It takes O(N^2) memory; the authors' kernel needs less.

  Gin: gin/attention/stick_breaking.gin, stick_breaking_value.gin,
  stick_breaking_bias.gin.

  Args, beside those of `attention.api`:
    remainder: 'none', 'value' or 'bias'.
    remainder_bias: [H, D], only with 'bias'.
  """
  _check_remainder(remainder, remainder_bias, query)
  scale = checks.scale('stick_breaking_attention', scale, query)
  own_value = value
  if position is not None:
    checks.step(query, key, value, bias, position)
    if remainder == VALUE:
      own_value = jnp.take_along_axis(
        value, position[:, None, None, None], axis=1
      )
    earlier = jnp.arange(key.shape[1]) < position[:, None]
    value = masks.zero_padding(value, earlier)
    logits = steps.query_logits(query, key, scale, bias)
    visible = earlier[:, None, None]
  else:
    checks.shapes(query, key, value, bias, segment_ids)
    query, key, value, _, faults = nonfinite.clean_heads(
      query, key, value, live=segment_ids
    )
    own_value = value
    logits = reference.attention_logits(query, key, scale, bias)
    earlier = ~jnp.eye(logits.shape[-1], dtype=bool)
    visible = masks.visible(logits.shape[-1], segment_ids) & earlier
    visible = visible[:, None]
  weights = stick_breaking_weights(logits, visible)
  out = jnp.einsum('bhij,bjhd->bihd', weights, value.astype(weights.dtype))
  if remainder != NONE:
    # prod (1 - sigmoid(z)) is 1 - sum(weights) without its cancellation.
    shares = jnp.where(visible, jax.nn.softplus(logits), 0)
    rest = jnp.exp(-jnp.sum(shares, axis=-1)).swapaxes(1, 2)[..., None]
    # Padding sees nothing, so its whole stick would remain.
    rest = masks.zero_padding(rest, segment_ids)
    out += rest * (own_value if remainder == VALUE else remainder_bias)
  out = out.astype(value.dtype)
  if position is not None:
    return out
  seen = visible[:, 0]
  if remainder == VALUE:
    seen = masks.visible(query.shape[1], segment_ids)
  reached, _ = faults.reach(nonfinite.where_visible(seen))
  return nonfinite.mark(out, reached)


def _check_remainder(remainder, remainder_bias, query):
  """Refuses an unknown remainder, or a bias that nothing reads."""
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
