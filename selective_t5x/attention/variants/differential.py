"""Differential attention: one softmax minus a share of another.

Shapes: B batch, N length, H heads, D head size. Sources: Ye et al.,
"Differential Transformer", arXiv 2410.05258, section 2.1; and, for
`differential_v2_attention`, the authors' note "Differential Transformer V2"
(January 2026, github.com/microsoft/unilm, Diff-Transformer).
"""

import math

import jax.numpy as jnp
from jaxtyping import Float

from selective_t5x.attention import api, capabilities, masks
from selective_t5x.attention.arrays import Array, Scalar, Setting
from selective_t5x.attention.distance_bias import DistanceBias, repeat_heads


def initial_share(layer: int) -> float:
  """Returns lambda_init = 0.8 - 0.6 * exp(-0.3 * layer).

  Args:
    layer: the layer's number, from 0 (the paper counts from 1).
  """
  return 0.8 - 0.6 * math.exp(-0.3 * layer)


def share(
  query_1: Float[Array, ' half'],
  key_1: Float[Array, ' half'],
  query_2: Float[Array, ' half'],
  key_2: Float[Array, ' half'],
  initial: Scalar,
) -> Float[Array, '']:
  """Returns lambda = exp(<q1, k1>) - exp(<q2, k2>) + initial, f32[].

  Args:
    query_1: f32[D / 2], learned, like the next three.
    key_1: f32[D / 2].
    query_2: f32[D / 2].
    key_2: f32[D / 2].
    initial: lambda_init, the value of lambda if all four are zero.
  """
  return (
    jnp.exp(jnp.sum(query_1 * key_1))
    - jnp.exp(jnp.sum(query_2 * key_2))
    + initial
  )


@capabilities.declare(implementation=True, distance_bias=True)
def differential_attention(
  query: Array,
  key: Array,
  value: Array,
  *,
  share: Array | float,
  scale: Setting | None = None,
  bias: Array | DistanceBias | None = None,
  segment_ids: Array | None = None,
  implementation: str | None = None,
  position: Array | None = None,
) -> Array:
  """Causal attention with the difference of two softmaxes for weights.

  out = (softmax(A_1) - share * softmax(A_2)) V. A_1 and A_2 are the logits of
  the first and of the second half of each head's queries and keys; the values
  stay whole. It is computed as plain attention with 4 H heads of D / 2: each
  half of queries and keys with each half of the values.
  `differential_heads.DifferentialHeads` has the parameters and the following
  normalisation. As in the paper, gin/attention/differential.gin sets half as
  many heads of twice the size, so that a half is as large as a head of a plain
  Transformer. Differs from the paper: a bias is added to both logits, and a
  network that normalises queries and keys does so over both halves together.

  Args, beside those of `attention.api`:
    query: [B, N, H, D], D even.
    share: f32[], lambda; 0 is attention with the first halves alone.
    scale: multiplies the logits; None for (D / 2) ** -0.5.
  """
  heads, size = query.shape[2:]
  if size % 2:
    raise ValueError(f'attention: D must be even to be halved, got {size}')

  def halves(x, outer):
    """Splits [B, N, H, D] to [B, N, 4 H, D / 2]; values use `outer`."""
    batch, length = x.shape[:2]
    x = x.reshape(batch, length, heads, 2, size // 2)
    x = jnp.expand_dims(x, 4 if outer else 3)
    x = jnp.broadcast_to(x, (batch, length, heads, 2, 2, size // 2))
    return x.reshape(batch, length, 4 * heads, size // 2)

  out = api.causal_attention(
    halves(query, outer=True),
    halves(key, outer=True),
    halves(value, outer=False),
    scale=scale,
    bias=repeat_heads(bias, 4),
    segment_ids=segment_ids,
    implementation=implementation,
    position=position,
  )
  dtype = jnp.promote_types(out.dtype, jnp.float32)
  out = out.astype(dtype).reshape(*out.shape[:2], heads, 2, size)
  return (out[..., 0, :] - share * out[..., 1, :]).astype(value.dtype)


@capabilities.declare(implementation=True, distance_bias=True)
def differential_v2_attention(
  query: Array,
  key: Array,
  value: Array,
  *,
  second_query: Array,
  share: Array,
  scale: Setting | None = None,
  bias: Array | DistanceBias | None = None,
  segment_ids: Array | None = None,
  implementation: str | None = None,
  position: Array | None = None,
) -> Array:
  """Causal attention with two queries a head, whose outputs are subtracted.

  out = (softmax(A_1) - share * softmax(A_2)) V. A_1 and A_2 are the logits of
  the head's two queries with the same keys. It is computed as plain attention
  with 2 H heads, of which pairs share keys and values. There is no lambda_init
  and no following normalisation. Source: Differential Transformer V2. Differs
  from it: a bias is added to both logits. The parameters are in
  `differential_heads.DifferentialV2Heads`.

  Gin: gin/attention/differential_v2.gin.

  Args, beside those of `attention.api`:
    query: [B, N, H, D], the first query of each head.
    second_query: [B, N, H, D], the second.
    share: f32[B, N, H], lambda of each query token and head, 0 to 1; 0 is
      attention with the first queries alone. [B, 1, H] in a step.
  """
  if second_query.shape != query.shape or share.shape != query.shape[:3]:
    raise ValueError(
      'attention: second_query must be as query, '
      f'{list(query.shape)}, and share [B, N, H], got '
      f'{list(second_query.shape)} and {list(share.shape)}'
    )
  batch, queries, heads, size = query.shape
  pairs = jnp.stack([query, second_query], axis=3)
  out = api.causal_attention(
    pairs.reshape(batch, queries, 2 * heads, size),
    jnp.repeat(key, 2, axis=2),
    jnp.repeat(value, 2, axis=2),
    scale=scale,
    bias=repeat_heads(bias, 2),
    segment_ids=segment_ids,
    implementation=implementation,
    position=position,
  )
  dtype = jnp.promote_types(out.dtype, jnp.float32)
  out = out.astype(dtype).reshape(batch, queries, heads, 2, size)
  if position is None:
    share = masks.zero_padding(share, segment_ids)
  return (out[..., 0, :] - share[..., None] * out[..., 1, :]).astype(
    value.dtype
  )
