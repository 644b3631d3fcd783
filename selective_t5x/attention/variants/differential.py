"""Differential attention: one softmax minus a share of another.

Shapes: B batch, N length, H heads, D head size. Source: Ye et al.,
"Differential Transformer", arXiv 2410.05258, section 2.1.
"""

import math

import jax
import jax.numpy as jnp

from selective_t5x.attention import api


def initial_share(layer: int) -> float:
  """Returns lambda_init = 0.8 - 0.6 * exp(-0.3 * layer).

  Args:
    layer: its number, from 0 (the paper counts from 1).
  """
  return 0.8 - 0.6 * math.exp(-0.3 * layer)


def share(
  query_1: jax.Array,
  key_1: jax.Array,
  query_2: jax.Array,
  key_2: jax.Array,
  initial: float,
) -> jax.Array:
  """Returns lambda = exp(<q1, k1>) - exp(<q2, k2>) + initial, f32[].

  Args:
    query_1: f32[D / 2], learned, as the three that follow.
    key_1: f32[D / 2].
    query_2: f32[D / 2].
    key_2: f32[D / 2].
    initial: lambda_init, what lambda is where all four are zero.
  """
  return (
    jnp.exp(jnp.sum(query_1 * key_1))
    - jnp.exp(jnp.sum(query_2 * key_2))
    + initial
  )


def differential_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  share: jax.Array | float,
  scale: float | None = None,
  bias: jax.Array | None = None,
  segment_ids: jax.Array | None = None,
  implementation: str | None = None,
  position: jax.Array | None = None,
) -> jax.Array:
  """Causal attention with the difference of two softmaxes for weights.

  out = (softmax(A_1) - share * softmax(A_2)) V, A_1 and A_2 the logits of the
  first and of the second half of each head's queries and keys; the values stay
  whole. Both are plain attention, of 4 H heads of D / 2: each half of queries
  and keys with each half of the values. `differential_heads.DifferentialHeads`
  has the parameters, and the normalisation that follows. Differs from the
  paper: it halves the number of heads and doubles their size, here H and D are
  those of the network; a bias is added to both logits.

  Args:
    query: [B, N, H, D], D even.
    key: [B, N, H, D].
    value: [B, N, H, D].
    share: f32[], lambda; 0 is attention with the first halves alone.
    scale: multiplies the logits; None for (D / 2) ** -0.5.
    bias: added to the logits; broadcasts to [B, H, N, N].
    segment_ids: i32[B, N], 0 for padding, each run of equal ids a segment;
      None for one segment without padding.
    implementation: as of `api.causal_attention`.
    position: i32[B], for a step of cached decoding: query is then [B, 1, H, D],
      the token in this slot, and bias broadcasts to [B, H, 1, N].

  Returns:
    [B, N, H, D] in value's dtype, [B, 1, H, D] of a step; zero in padding rows.
    The logits are float32.

  Raises:
    ValueError: if D is odd or the shapes do not fit together.
    UserError: as of `api.causal_attention`.
  """
  heads, size = query.shape[2:]
  if size % 2:
    raise ValueError(f'attention: D must be even to be halved, got {size}')

  def halves(x, outer):
    """[B, N, H, D] to [B, N, 4 H, D / 2]: of logits, or of values, outer."""
    batch, length = x.shape[:2]
    x = x.reshape(batch, length, heads, 2, size // 2)
    x = jnp.expand_dims(x, 4 if outer else 3)
    x = jnp.broadcast_to(x, (batch, length, heads, 2, 2, size // 2))
    return x.reshape(batch, length, 4 * heads, size // 2)

  if bias is not None:
    bias = bias.reshape((1,) * (4 - bias.ndim) + bias.shape)
    bias = bias if bias.shape[1] == 1 else jnp.repeat(bias, 4, axis=1)
  out = api.causal_attention(
    halves(query, outer=True),
    halves(key, outer=True),
    halves(value, outer=False),
    scale=scale,
    bias=bias,
    segment_ids=segment_ids,
    implementation=implementation,
    position=position,
  )
  dtype = jnp.promote_types(out.dtype, jnp.float32)
  out = out.astype(dtype).reshape(*out.shape[:2], heads, 2, size)
  return (out[..., 0, :] - share * out[..., 1, :]).astype(value.dtype)
