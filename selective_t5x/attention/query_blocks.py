"""Blocks of queries one after the other: rows of F without all of F.

Shapes: B batch, N length, C queries of a block, H heads, G selecting heads. The
sums of one block are what the next one starts from, so a loop over blocks needs
O(C * N) memory a head for F and logits, not O(N^2).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Shaped

from selective_t5x.attention import masks, reference
from selective_t5x.attention.arrays import Array
from selective_t5x.attention.distance_bias import of_block
from selective_t5x.attention.selection import Selection


def visible(
  first: Int[Array, ''],
  size: int,
  length: int,
  segment_ids: Shaped[Array, 'B N'] | None = None,
) -> Bool[Array, '#B C N']:
  """Returns the rows of `masks.visible` for the queries of a block.

  Args:
    first: i32[], the index of the block's first query.
    size: C; the block ends at N or before.
    length: N.
    segment_ids: i32[B, N], 0 for padding; None for one segment.
  """
  slots = jnp.arange(length)
  starts = jax.lax.dynamic_slice_in_dim(
    masks.segment_starts(length, segment_ids), first, size, axis=1
  )
  queries = first + jnp.arange(size)
  return (starts[:, :, None] <= slots) & (slots <= queries[:, None])


def masking_rows(
  selection: Selection,
  total: Float[Array, 'B G N'],
  *,
  first: Int[Array, ''],
  segment_ids: Shaped[Array, 'B N'] | None = None,
) -> tuple[Float[Array, 'B G C N'], Float[Array, 'B G N']]:
  """Returns the rows of F of a block of queries.

  Args:
    selection: its query [B, C, G, E], its key [B, N, G, E]; its bias broadcasts
      to [B, G, C, N], or is a DistanceBias.
    total: f32[B, G, N], the selection scores of all queries before the block,
      summed; zeros at first.
    first: i32[], the index of the block's first query.
    segment_ids: i32[B, N], 0 for padding; None for one segment.

  Returns:
    f32[B, G, C, N], the rows of `selection.masking_matrix`: 0 where the query
    may not see the key; and the total with the block's scores.
  """
  size, length = selection.query.shape[1], selection.key.shape[1]
  scores = reference.attention_logits(
    selection.query,
    selection.key,
    selection.scale,
    of_block(selection.bias, first, size, length),
  )
  seen = visible(first, size, length, segment_ids)
  may_mask = seen
  relu, protect_bos, protect_self = selection.constraints
  if protect_self:
    queries = first + jnp.arange(size)
    may_mask &= jnp.arange(length) != queries[:, None]
  if protect_bos:
    may_mask &= ~masks.first_in_segment(length, segment_ids)[:, None]
  scores = jnp.where(
    may_mask[:, None], jax.nn.relu(scores) if relu else scores, 0
  )
  summed = total[:, :, None] + jnp.cumsum(scores, axis=2)
  # Selection acts on strictly later queries.
  rows = jnp.concatenate([total[:, :, None], summed[:, :, :-1]], axis=2)
  return jnp.where(seen[:, None], rows, 0), summed[:, :, -1]
