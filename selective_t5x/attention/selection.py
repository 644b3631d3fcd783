"""Selection: how strongly earlier queries ask to mask each key.

Source: Leviathan, Kalman, Matias, "Selective Attention Improves Transformer",
arXiv 2410.02703, section 3.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from selective_t5x.attention import masks


class Selection(NamedTuple):
  """What selects: G heads, each of which masks keys for H / G others.

  Their logits are scale * <query_i, key_j> + bias. One head of the model itself
  is its slice of queries and keys.

  Attributes:
    query: [B, N, G, E]. Head h of H reads the masking of g = h // (H / G).
    key: [B, N, G, E].
    scale: multiplies the products.
    bias: broadcasts to [B, G, N, N]; None for none.
    head: the head of the model whose query, key and scale these are, so that
      who has its products need not compute them again; None for none.
  """

  query: jax.Array
  key: jax.Array
  scale: float
  bias: jax.Array | None = None
  head: int | None = None


def of_head(
  query: jax.Array,
  key: jax.Array,
  *,
  head: int,
  scale: float,
  bias: jax.Array | None = None,
  masking_scale: jax.Array | float | None = None,
) -> Selection:
  """Makes one attention head select, by its own logits.

  Args:
    query: [B, Q, H, D].
    key: [B, N, H, D].
    head: which of the H.
    scale: multiplies the logits.
    bias: of the logits, broadcasts to [B, H, Q, N]; None to select without.
    masking_scale: multiplies all scores, and so F: zero or more; None for 1.
      It multiplies the queries, which is the same since relu(c x) = c relu(x).

  Returns:
    The selection, G = 1 and E = D.
  """
  query, key = (x[:, :, head : head + 1] for x in (query, key))
  if bias is not None:
    # [B or 1, H or 1, Q or 1, N or 1], with leading axes where it had none.
    bias = bias.reshape((1,) * (4 - bias.ndim) + bias.shape)
    bias = bias if bias.shape[1] == 1 else bias[:, head : head + 1]
  if masking_scale is None:
    return Selection(query, key, scale, bias, head)
  query = query * jnp.asarray(masking_scale, query.dtype)
  bias = None if bias is None else bias * masking_scale
  return Selection(query, key, scale, bias)


def selection_scores(
  head_logits: jax.Array, *, segment_ids: jax.Array | None = None
) -> jax.Array:
  """Clips the logits of the selection head to what a token may mask.

  S[b, i, j] = relu(A[b, i, j]) where j < i (a token never masks itself), both
  in one segment, neither padding, and j not the first of its segment (<BOS> is
  never masked); 0 elsewhere.

  Args:
    head_logits: f32[B, N, N], logits of the selection head before any mask;
      axis 1 is the query.
    segment_ids: i32[B, N], 0 for padding; None for one segment.

  Returns:
    [B, N, N] of head_logits' dtype, zero or more.
  """
  length = head_logits.shape[-1]
  earlier = ~jnp.eye(length, dtype=bool)
  not_first = ~masks.first_in_segment(length, segment_ids)[:, None, :]
  may_mask = masks.visible(length, segment_ids) & earlier & not_first
  return jnp.where(may_mask, jax.nn.relu(head_logits), 0)


def masking_matrix(
  head_logits: jax.Array, *, segment_ids: jax.Array | None = None
) -> jax.Array:
  """Sums the selection scores of earlier queries: what each key is masked by.

  F[b, i, j] = sum_{k < i} S[b, k, j], S from `selection_scores`: the selection
  of a token acts on strictly later queries. Differs from the paper: packed
  rows, where each segment protects its own first token and sums on its own.

  Args:
    head_logits: f32[B, N, N], logits of the selection head before any mask;
      axis 1 is the query. Other float types are computed in float32 at least.
    segment_ids: i32[B, N], 0 for padding, each segment contiguous; None for
      one segment.

  Returns:
    f32[B, N, N], zero or more; 0 wherever the query may not see the key.

  Raises:
    ValueError: if head_logits is not [B, N, N] or segment_ids not [B, N].
  """
  shape = head_logits.shape
  if len(shape) != 3 or shape[1] != shape[2]:
    raise ValueError(
      f'masking_matrix: head_logits must be [B, N, N], got {list(shape)}'
    )
  if segment_ids is not None and segment_ids.shape != shape[:2]:
    raise ValueError(
      'masking_matrix: segment_ids must be [B, N] = '
      f'{list(shape[:2])}, got {list(segment_ids.shape)}'
    )
  dtype = jnp.promote_types(head_logits.dtype, jnp.float32)
  scores = selection_scores(head_logits.astype(dtype), segment_ids=segment_ids)
  # Strictly later queries: shift the inclusive sum by one. (Subtracting a
  # query's own score from it instead would cancel digits.)
  summed = jnp.cumsum(scores, axis=1)
  shifted = jnp.pad(summed[:, :-1], ((0, 0), (1, 0), (0, 0)))
  # Queries of later segments would inherit the sums of earlier ones.
  return jnp.where(masks.visible(shape[1], segment_ids), shifted, 0)
