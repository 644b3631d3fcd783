"""Inverse temperatures of queries, keys and values, one per token.

Shapes: B batch, N length, H heads, D head size. Source: Zhang, Chang, Li,
Roy-Chowdhury, Chen, Oymak, "Selective Attention: Enhancing Transformer through
Principled Context Control" (SSA), arXiv 2411.12892, section 3.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped

from selective_t5x.attention import masks
from selective_t5x.attention.arrays import Array, Scalar


def inverse_temperature(
  token: Float[Array, 'B N'] | None = None,
  alpha: Scalar | None = None,
  position: Int[Array, '#B N'] | None = None,
  segment_ids: Shaped[Array, 'B N'] | None = None,
) -> Float[Array, '#B #N']:
  """Returns t = 1 + tanh(token) + sigmoid(alpha) * log(position).

  These are the paper's two terms: the token's, tanh(f(x)), and the position's
  in the segment, 1 + sigmoid(alpha) * log(n). Differs from the paper: the 1
  stays without the second term, so that f = 0 is plain attention.

  Args:
    token: f32[B, N], f(x); None without this term.
    alpha: f32[], how much the position matters; None without this term.
    position: i32[B, N], in the segment, from 1; needed with alpha.
    segment_ids: i32[B, N], 0 for padding, which has no token term; None without
      padding.

  Returns:
    f32[B, N], zero or more; [1, N] or [1, 1] if the inputs have no more axes.
  """
  terms = jnp.ones((1, 1))
  if token is not None:
    token = token.astype(jnp.promote_types(token.dtype, jnp.float32))
    terms += jnp.tanh(masks.zero_padding(token, segment_ids))
  if alpha is not None:
    terms += jax.nn.sigmoid(alpha) * jnp.log(position)
  return terms


def tempered(
  x: Float[Array, 'B N H D'],
  temperature: Float[Array, '#B #N'],
  segment_ids: Shaped[Array, 'B N'] | None = None,
) -> Float[Array, 'B N H D']:
  """Multiplies queries, keys or values by their inverse temperatures.

  With softmax(scale * (t_q Q)(t_k K)^T) (t_v V), attention and selection both
  read the multiplied arrays.

  Args:
    x: [B, N, H, D].
    temperature: f32[B, N], finite; an axis may be 1.
    segment_ids: i32[B, N], 0 for padding; None without padding.

  Returns:
    [B, N, H, D] of x's dtype, zero in padding.
  """
  # Zeroed first: a NaN of padding would reach the temperature's gradient.
  x = masks.zero_padding(x, segment_ids)
  return (x * temperature[..., None, None]).astype(x.dtype)
