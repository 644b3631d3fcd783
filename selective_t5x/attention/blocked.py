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

Blocks are grouped into spans. A span is one loop over its blocks, which all
read the keys up to the span's end. Few spans keep the program short; many spans
skip more of the keys after a query. The loops also make XLA recompute the tiles
in the backward pass instead of keeping them. On CPU, rows of up to 512 tokens
have one span per block and no loops: their tiles are small enough to keep,
which saves up to a quarter of the time.

Tiles are [B, H, K, Q], keys before queries, so that products with triangular
matrices and the sums of a softmax run along contiguous memory.

Shapes: B batch, N length, H heads, D head size, G selection heads of size E, T
blocks of Q queries, K the keys that a span reads.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from selective_t5x.attention import derivatives, masks, mesh, nonfinite
from selective_t5x.attention.blocked_tiles import (
  Keys,
  Queries,
  Tile,
  dot,
  no_columns,
  numbered,
  ones,
  put_up_to,
  spans,
  sum_by,
  sum_heads,
  up_to,
)
from selective_t5x.attention.selection import ALL, Constraints, Selection

# S spans compute (1 + 1 / S) / 2 of the square.
MAX_SPANS = 8
# The longest row, in tokens, whose tiles XLA:CPU may keep.
_SHORT = 512


class _Static(NamedTuple):
  """Compile-time constants of a call."""

  memory_tau: float | None
  blocks_a_span: int
  constraints: Constraints


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  selection: Selection | None,
  scale: float,
  bias: jax.Array | None,
  segment_ids: jax.Array | None,
  memory_tau: float | None,
  levels: jax.Array | None = None,
  block: int | None = None,
) -> tuple[jax.Array, jax.Array | None]:
  """Causal attention with or without selection.

  Args:
    query: [B, N, H, D].
    key: [B, N, H, D].
    value: [B, N, H, D].
    selection: with G dividing H; None for plain causal attention.
    scale: multiplies the logits.
    bias: added to the logits; broadcasts to [B, H, N, N]; or None.
    segment_ids: i32[B, N], 0 for padding; None for one segment.
    memory_tau: positive; None to skip M.
    levels: f32[B, N, H], whole numbers without a gradient, or None. Adds
      levels_i - levels_j, which is exact, to the logits.
    block: queries per block; None for the fastest size.

  Returns:
    (out [B, N, H, D] in value's dtype, M f32[B, N] or None); M is the mean over
    the G. Logits and F are float32 for every dtype but float64.
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
    x = x.reshape((1,) * (4 - x.ndim) + x.shape).astype(dtype).swapaxes(2, 3)
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
  if selection is not None:
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
  # A span of one block is no loop, so spans of long rows have two or more.
  is_short = length <= _SHORT and mesh.platform() == 'cpu'
  least = 1 if is_short else 2
  static = _Static(
    memory_tau,
    max(least, -(-blocks // MAX_SPANS)),
    ALL if selection is None else selection.constraints,
  )
  queries, keys = derivatives.reverse_mode_alone((queries, keys), 'blocked')
  out, seen = _attend(queries, keys, padded_start, static)
  reached, rows = faults.reach(nonfinite.causally(start))
  out = nonfinite.mark(joined(out).astype(value.dtype), reached)
  if seen is not None:
    seen = nonfinite.mark(joined(seen), jnp.any(rows, axis=-1))
  return out, seen


def _default_block(length: int) -> int:
  """Returns the block size that was fastest on 2 CPU cores."""
  # Several small blocks skip more masked keys than a large one.
  return 64 if 128 < length <= _SHORT else 128


# jit traces it once for all layers of a model, and compiles a lone call whole.
@functools.partial(jax.jit, static_argnums=3)
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(queries, keys, start, static):
  """Returns (out [T, B, H, D, Q], M f32[T, B, Q] or None)."""
  return _forward(queries, keys, start, static)[0]


def _forward(queries, keys, start, static):
  columns = no_columns(keys)
  results = []
  for blocks, width in spans(queries, static):
    span = up_to(width, keys)

    def step(columns, block, span=span):
      index, rows = block
      tile = Tile(index, rows, span, start, static.constraints)
      before, masking, seen = columns, None, None
      if columns is not None:
        masking, _, columns = tile.masking(columns)
        if static.memory_tau is not None:
          counted = tile.visible & (masking < static.memory_tau)
          visibility = 1 - masking / static.memory_tau
          visibility = jnp.where(masking < 0, 1, visibility)
          visibility = jnp.where(counted, visibility, 0)
          seen = jnp.mean(jnp.sum(visibility, axis=2), axis=1)
      logits = tile.logits(masking)
      peak = jnp.max(logits, axis=2)
      weights = jnp.exp(logits - peak[:, :, None])
      total = jnp.sum(weights, axis=2)
      out = dot('bhkd,bhkq->bhdq', span.value, weights) / total[:, :, None]
      return columns, (out, peak + jnp.log(total), before, seen)

    narrow, result = jax.lax.scan(
      step, up_to(width, columns), numbered(queries, blocks)
    )
    columns = put_up_to(width, columns, narrow)
    results.append(result)
  outs, norms, befores, seens = zip(*results, strict=True)
  out, norm = jnp.concatenate(outs), jnp.concatenate(norms)
  seen = None if seens[0] is None else jnp.concatenate(seens)
  return (out, seen), (queries, keys, start, out, norm, befores)


def _backward(static, saved, cotangents):
  queries, keys, start, out, norm, befores = saved
  d_out, d_seen = cotangents
  # The gradient of a softmax subtracts these sums of weight times gradient.
  delta = jnp.sum(d_out * out, axis=3)
  # The keys' gradients and the column sums of dF grow from the last block to
  # the first.
  grown = jax.tree.map(jnp.zeros_like, keys), no_columns(keys)
  d_queries = []
  parts = list(zip(spans(queries, static), befores, strict=True))
  for (blocks, width), before in reversed(parts):
    span = up_to(width, keys)

    def step(grown, xs, span=span):
      d_keys, d_columns = grown
      block, before, norm, delta, d_out, d_seen = xs
      index, rows = block
      tile = Tile(index, rows, span, start, static.constraints)
      masking = scored = None
      if before is not None:
        masking, scored, _ = tile.masking(before)
      weights = jnp.exp(tile.logits(masking) - norm[:, :, None])
      d_weights = dot('bhkd,bhdq->bhkq', span.value, d_out)
      d_logits = weights * (d_weights - delta[:, :, None])
      d_query = dot('bhkd,bhkq->bhdq', span.key, d_logits)
      d_keys = d_keys._replace(
        key=d_keys.key + dot('bhkq,bhdq->bhkd', d_logits, tile.query),
        value=d_keys.value + dot('bhkq,bhdq->bhkd', weights, d_out),
        bias=tile.add_to_bias(d_keys.bias, d_logits),
      )
      if masking is None:
        return (d_keys, None), Queries(d_query)
      d_masking = -sum_heads(d_logits, masking.shape[1])
      if d_seen is not None:
        counted = tile.visible & (masking < static.memory_tau) & (masking >= 0)
        share = d_seen[:, None, None] / (static.memory_tau * masking.shape[1])
        d_masking -= jnp.where(counted, share, 0)
      later = jnp.tril(ones(d_masking), -1)
      d_scores = d_columns[..., None] + sum_by(d_masking, later)
      d_scores = jnp.where(scored, d_scores, 0)
      d_keys = d_keys._replace(
        selection_key=d_keys.selection_key
        + dot('bgkq,bgeq->bgke', d_scores, tile.selection_query),
        selection_bias=tile.add_to_bias(d_keys.selection_bias, d_scores),
      )
      return (d_keys, d_columns + jnp.sum(d_masking, axis=3)), Queries(
        d_query, dot('bgke,bgkq->bgeq', span.selection_key, d_scores)
      )

    block_values = jax.tree.map(
      lambda x, blocks=blocks: x[blocks], (norm, delta, d_out, d_seen)
    )
    narrow, d_query = jax.lax.scan(
      step,
      up_to(width, grown),
      (numbered(queries, blocks), before, *block_values),
      reverse=True,
    )
    grown = put_up_to(width, grown, narrow)
    d_queries.append(d_query)
  d_queries = jax.tree.map(lambda *x: jnp.concatenate(x), *d_queries[::-1])
  return d_queries, grown[0], None


_attend.__wrapped__.defvjp(_forward, _backward)  # type: ignore[attr-defined]
