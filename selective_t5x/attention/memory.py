"""Attention memory: how many tokens a query still sees under selection."""

import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Shaped

from selective_t5x.attention import masks
from selective_t5x.attention.arrays import Array, Scalar


def visible_tokens(
  masking: Float[Array, 'B N N'],
  tau: Scalar,
  *,
  segment_ids: Shaped[Array, '#B N'] | None = None,
) -> Float[Array, 'B N']:
  """Counts the tokens that each query sees; partly masked ones count in part.

  M[b, i] = sum over non-padding j <= i of i's segment of
  1 - min(max(F[b, i, j], 0), tau) / tau. Differentiable: the cotangent g of M
  enters that of F as -g[b, i] / tau where 0 <= F < tau, and nowhere else.
  Source: arXiv 2410.02703, section 5, where F is zero or more, without a max.
  Differs from the paper where selection has no relu: M counts the tokens that
  a cache has to hold, so a key with F below zero counts as one, not as more,
  and drawing more attention to it costs nothing.

  Args:
    masking: f32[B, N, N], F; axis 1 is the query.
    tau: the masking from which a token counts as gone; positive.
    segment_ids: i32[B, N], 0 for padding; None for one segment.

  Returns:
    f32[B, N], between 1 and the query's position in its segment counted from
    1; 0 for padding.
  """
  return count_visible(
    masking, masks.visible(masking.shape[-1], segment_ids), tau
  )


def count_visible(
  masking: Float[Array, '*B Q N'], seen: Bool[Array, '#*B Q N'], tau: Scalar
) -> Float[Array, '*B Q']:
  """Counts like `visible_tokens` the keys that any queries see.

  Args:
    masking: f32[..., Q, N], their rows of F.
    seen: bool[..., Q, N], the keys that are earlier, of the query's segment and
      no padding.
    tau: positive.
  """
  visibility = jnp.where(masking < 0, 1, 1 - masking / tau)
  return jnp.sum(jnp.where(seen & (masking < tau), visibility, 0), axis=-1)


def fraction_visible(
  memory: Float[Array, 'L B N'], segment_ids: Shaped[Array, 'B N']
) -> Float[Array, '']:
  """Measures the memory that a batch needs, as a fraction of its tokens: R.

  In each layer a segment needs room for the tokens of its most demanding query.
  R = mean over rows with n_b > 0 of (sum over layers l and segments of
  max over i in the segment of M_l[b, i]) / (L * n_b), where n_b is the number
  of the row's non-padding tokens. Source: arXiv 2410.02703, section 5. Differs
  from the paper: rows may be packed; there a row is one segment.

  Args:
    memory: f32[L, B, N], M of every layer (`visible_tokens`).
    segment_ids: i32[B, N], 0 for padding, each run of equal ids a segment.

  Returns:
    f32[], 1 if nothing is masked; 0 if all tokens are padding.
  """
  fractions = fractions_of_rows(memory, segment_ids)
  return jnp.sum(fractions) / jnp.maximum(count_rows(segment_ids), 1)


def fractions_of_rows(
  memory: Float[Array, 'L B N'], segment_ids: Shaped[Array, 'B N']
) -> Float[Array, ' B']:
  """Returns each row's term of `fraction_visible`, f32[B]; 0 for padding."""
  layers, batch, length = memory.shape
  rows = jnp.arange(batch)[:, None]
  # Runs of equal ids are numbered from 0, so any ids fit in N places. A run of
  # padding has -1 and its place stays at 0, so it has no gradient.
  run = jnp.cumsum(masks.first_in_segment(length, segment_ids), axis=1) - 1
  memory = jnp.where(segment_ids != 0, memory, -1)
  peaks = jnp.zeros_like(memory).at[:, rows, run].max(memory)
  tokens = jnp.sum(segment_ids != 0, axis=1)
  return jnp.sum(peaks, axis=(0, 2)) / (layers * jnp.maximum(tokens, 1))


def count_rows(segment_ids: Shaped[Array, 'B N']) -> Int[Array, '']:
  """Counts the rows of int[B, N] that are not all padding, i32[]."""
  return jnp.sum(jnp.any(segment_ids != 0, axis=1))
