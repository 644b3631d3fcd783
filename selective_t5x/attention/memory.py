"""Attention memory: how many tokens a query still sees under selection."""

import jax
import jax.numpy as jnp

from selective_t5x.attention import masks


def visible_tokens(
  masking: jax.Array, tau: float, *, segment_ids: jax.Array | None = None
) -> jax.Array:
  """Counts the tokens that each query sees, those partly masked in part.

  M[b, i] = sum over non-padding j <= i of i's segment of
  1 - min(F[b, i, j], tau) / tau. Differentiable: the cotangent g of M enters
  that of F as -g[b, i] / tau where F < tau, and nowhere else. Source: arXiv
  2410.02703, section 5.

  Args:
    masking: f32[B, N, N], F; axis 1 is the query.
    tau: the masking from which a token counts as gone; positive.
    segment_ids: i32[B, N], 0 for padding; None for one segment.

  Returns:
    f32[B, N], between 1 and the query's position in its segment counted from
    1; 0 for padding.
  """
  counted = masks.visible(masking.shape[-1], segment_ids) & (masking < tau)
  return jnp.sum(jnp.where(counted, 1 - masking / tau, 0), axis=-1)
