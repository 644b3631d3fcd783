"""Exact selective attention in blocks of queries: pure JAX, every backend.

F is a running sum over earlier queries, so a loop over the query blocks needs
only the column sums of the earlier blocks, c [B, G, N]. Within a block, F is c
plus an exclusive running sum over the block's queries, computed as a product
with a strictly triangular matrix. The backward pass takes the blocks from last
to first: dF is minus the sum of dA over the heads, and the gradient of a score
is the sum of dF over all later queries, again column sums and a product.

The forward pass saves the output, one log-sum-exp per query and head, and c of
every block, O(N * N / block). The backward pass recomputes the N x N arrays one
query block at a time, so live memory is O(N * block). Without selection this is
ordinary blocked attention.

A block of queries reads all earlier keys (`blocked_spans`), or only those that
earlier tokens have not masked beyond recall (`blocked_live`).

Tiles are [B, H, K, Q], keys before queries, so that products with triangular
matrices and the sums of a softmax run along contiguous memory.

Shapes: B batch, N length, H heads, D head size, G selection heads of size E, T
blocks of Q queries, K keys that a block reads.
"""

import functools

import jax
import jax.numpy as jnp

from selective_t5x.attention import (
  blocked_live,
  blocked_spans,
  derivatives,
  live_keys,
  masks,
  mesh,
  nonfinite,
)
from selective_t5x.attention.blocked_tiles import Keys, Queries, Selecting
from selective_t5x.attention.distance_bias import DistanceBias, four_axes
from selective_t5x.attention.selection import ALL, Selection

# S spans compute (1 + 1 / S) / 2 of the square.
MAX_SPANS = 8
# The longest row, in tokens, whose tiles XLA:CPU may keep.
_SHORT = 512


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  selection: Selection | None,
  scale: float,
  bias: jax.Array | DistanceBias | None,
  segment_ids: jax.Array | None,
  memory_tau: float | None,
  levels: jax.Array | None = None,
  forget_below: float | None = 0.0,
  return_live_keys: bool = False,
  block: int | None = None,
) -> tuple[jax.Array | None, ...]:
  """Causal attention with or without selection.

  Args:
    query: [B, N, H, D].
    key: [B, N, H, D].
    value: [B, N, H, D].
    selection: with G dividing H; None for plain causal attention.
    scale: multiplies the logits.
    bias: added to the logits; broadcasts to [B, H, N, N], or a DistanceBias,
      of which no array N x N is made; or None.
    segment_ids: i32[B, N], 0 for padding; None for one segment.
    memory_tau: positive; None to skip M.
    levels: f32[B, N, H], whole numbers without a gradient, or None. Adds
      levels_i - levels_j, which is exact, to the logits.
    forget_below: an upper bound of the weight, summed over all dropped keys,
      that a query loses; 0 to drop no key; None for the rounding of value's
      dtype.
    return_live_keys: whether to return the number of keys that each query
      reads.
    block: queries per block; None for the fastest size.

  Returns:
    (out [B, N, H, D] in value's dtype, M f32[B, N] or None); M is the mean over
    the G. With return_live_keys also f32[B, N], the visible keys that are not
    dropped, the mean over the G. Logits and F are float32 for every dtype but
    float64.
  """
  batch, length = value.shape[:2]
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  # A short row is one block; a multiple of 8 suits vector units.
  block = min(block or _default_block(length), -(-length // 8) * 8)
  blocks = -(-length // block)
  # The padding at the end comes after every query, so no query sees its keys;
  # the outputs of its queries are cut off.
  padding = blocks * block - length

  query, key, value, selection, faults = nonfinite.clean_heads(
    query, key, value, selection, live=segment_ids
  )

  def pad(x):
    return jnp.pad(x.astype(dtype), ((0, 0), (0, padding), (0, 0), (0, 0)))

  def whole(x):
    return pad(x).transpose(0, 2, 1, 3)

  def in_blocks(x):
    x = pad(x).reshape(batch, blocks, block, *x.shape[2:])
    return x.transpose(1, 0, 3, 4, 2)

  def keys_first(x):
    if x is None:
      return None
    if isinstance(x, DistanceBias):
      x = x.map(lambda values: values.astype(dtype))
      return x.within(length, causal=True).window(block)
    x = four_axes(x).astype(dtype).swapaxes(2, 3)
    room = [(0, padding if size > 1 else 0) for size in x.shape[2:]]
    return jnp.pad(x, [(0, 0), (0, 0), *room])

  def joined(x):
    """Joins blocks, [T, B, ..., Q] to [B, N, ...]; zero in padding rows."""
    x = jnp.moveaxis(x, (1, -1), (0, 2)).reshape(batch, -1, *x.shape[2:-1])
    return masks.zero_padding(x[:, :length], segment_ids)

  queries = Queries(in_blocks(query) * scale)
  keys = Keys(whole(key), whole(value), bias=keys_first(bias))
  if levels is not None:
    levels = jax.lax.stop_gradient(levels).swapaxes(1, 2).astype(dtype)
    levels = jnp.pad(levels, ((0, 0), (0, 0), (0, padding)))[..., None]
    keys = keys._replace(levels=levels)
  selecting = _selecting(selection, bias)
  if selecting.groups and selecting.heads is None:
    queries = queries._replace(
      selection_query=in_blocks(selection.query) * selection.scale
    )
    keys = keys._replace(
      selection_key=whole(selection.key),
      selection_bias=keys_first(selection.bias),
    )
  start = padded_start = None
  if segment_ids is not None:
    start = masks.segment_starts(length, segment_ids)
    # The padding starts after all keys, so it sees none.
    padded_start = jnp.pad(
      start, ((0, 0), (0, padding)), constant_values=length + padding
    )
  eps = live_keys.lost_weight(forget_below, value.dtype)
  # A span of one block is no loop, so spans of long rows have two or more.
  is_short = length <= _SHORT and mesh.platform() == 'cpu'
  blocks_a_span = max(1 if is_short else 2, -(-blocks // MAX_SPANS))
  if blocks > 1 and eps and _can_forget(selection, bias, levels):
    attend = functools.partial(
      blocked_live.attend,
      static=blocked_live.Static(memory_tau, eps, blocks_a_span, selecting),
    )
  else:
    attend = functools.partial(
      blocked_spans.attend,
      static=blocked_spans.Static(memory_tau, blocks_a_span, selecting),
    )
  queries, keys = derivatives.reverse_mode_alone((queries, keys), 'blocked')
  out, seen, *live = attend(queries, keys, padded_start)
  reached, rows = faults.reach(nonfinite.causally(start))
  out = nonfinite.mark(joined(out).astype(value.dtype), reached)
  if seen is not None:
    seen = nonfinite.mark(joined(seen), jnp.any(rows, axis=-1))
  if not return_live_keys:
    return out, seen
  live = _keys_read(length, block, start, *live)
  live = jnp.broadcast_to(live, (batch, length)).astype(dtype)
  return out, seen, masks.zero_padding(live, segment_ids)


def _keys_read(length, block, start, live=None) -> jax.Array:
  """Returns the number of keys that each query reads, [B or 1, N].

  Args:
    length: N.
    block: queries per block.
    start: i32[B, N], where each query's segment starts; None for 0.
    live: f32[T, B], the live keys before each block; None for all keys.
  """
  slots = jnp.arange(length)
  start = jnp.zeros((1, length), jnp.int32) if start is None else start
  if live is None:
    return slots - start + 1
  first = slots // block * block
  earlier = jnp.where(start < first, live.T[:, slots // block], 0)
  return slots - jnp.maximum(start, first) + 1 + earlier


def _selecting(selection, bias) -> Selecting:
  """Returns which logits select; those of heads are not computed twice."""
  if selection is None:
    return Selecting(0, None, ALL)
  # Selection without the bias reads other logits than the heads.
  same = (selection.bias is None) == (bias is None)
  heads = selection.head if same else None
  return Selecting(selection.query.shape[2], heads, selection.constraints)


def _default_block(length: int) -> int:
  """Returns the block size that was fastest on 2 CPU cores."""
  # Several small blocks skip more masked keys than a large one.
  return 64 if 128 < length <= _SHORT else 128


def _can_forget(selection, bias, levels) -> bool:
  """Returns whether keys can be dropped, and logs once why they cannot."""
  if selection is None or levels is not None:
    return False
  if not selection.constraints.relu:
    live_keys.log_that_none_is_dropped('F can fall without relu')
    return False
  groups = selection.query.shape[2]
  if isinstance(bias, DistanceBias):
    has_heads = bias.values.shape[0] > 1
  else:
    has_heads = bias is not None and bias.ndim > 2 and bias.shape[-3] > 1
  if groups > 1 and has_heads:
    live_keys.log_that_none_is_dropped(
      'several heads select and each head has a bias of its own'
    )
    return False
  return True
