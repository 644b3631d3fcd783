"""Blocked attention to all earlier keys, in spans of blocks.

A span is one loop over its blocks, which all read the keys up to the span's
end. Few spans keep the program short; many spans skip more of the keys after a
query. The loops also make XLA recompute the tiles in the backward pass instead
of keeping them. On CPU, rows of up to 512 tokens have one span per block and no
loops: their tiles are small enough to keep, which saves up to a quarter of the
time.

Shapes: those of `blocked`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from selective_t5x.attention.blocked_tiles import (
  Keys,
  Selecting,
  Tile,
  Visibility,
  block_of,
  no_columns,
)


class Static(NamedTuple):
  """Compile-time constants of a call."""

  memory_tau: float | None
  blocks_a_span: int
  selecting: Selecting


# jit traces it once for all layers of a model, and compiles a lone call whole.
@functools.partial(jax.jit, static_argnums=3)
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def attend(queries, keys, start, static: Static):
  """Attends to all earlier keys.

  Args:
    queries: `Queries`.
    keys: `Keys`.
    start: i32[B, N], of `masks.segment_starts`; None for one segment.
    static: constants.

  Returns:
    (out [T, B, H, D, Q], M f32[T, B, Q] or None).
  """
  return _forward(queries, keys, start, static)[0]


def _forward(queries, keys, start, static):
  columns = no_columns(keys, static.selecting)
  results = []
  for blocks, width in _spans(queries, static):
    span = _up_to(width, keys)

    def step(columns, block, span=span):
      index, rows = block
      tile = _tile(index, rows, span, columns, start, static)
      before, seen = columns, None
      if columns is not None:
        columns = tile.masking[..., -1] + tile.scores[..., -1]
        seen = tile.seen(static.memory_tau)
      return columns, (*tile.softmax().result(), before, seen)

    narrow, result = jax.lax.scan(
      step, _up_to(width, columns), _numbered(queries, blocks)
    )
    columns = _put_up_to(width, columns, narrow)
    results.append(result)
  outs, norms, befores, seens = zip(*results, strict=True)
  out, norm = jnp.concatenate(outs), jnp.concatenate(norms)
  seen = None if seens[0] is None else jnp.concatenate(seens)
  return (out, seen), (queries, keys, start, out, norm, befores)


def _backward(static, saved, cotangents):
  queries, keys, start, out, norm, befores = saved
  d_out, d_seen = cotangents
  delta = jnp.sum(d_out * out, axis=3)
  # The keys' gradients and the column sums of dF grow from the last block to
  # the first.
  grown = jax.tree.map(jnp.zeros_like, keys), no_columns(keys, static.selecting)
  d_queries = []
  parts = list(zip(_spans(queries, static), befores, strict=True))
  for (blocks, width), before in reversed(parts):
    span = _up_to(width, keys)

    def step(grown, xs, span=span):
      d_keys, d_columns = grown
      block, before, norm, delta, d_out, d_seen = xs
      index, rows = block
      tile = _tile(index, rows, span, before, start, static)
      d_queries, d_tile, d_masking = tile.gradients(
        norm, delta, d_out, d_seen, d_columns, static.memory_tau
      )
      d_keys = _add(d_keys, d_tile, index * d_out.shape[-1])
      if d_columns is not None:
        d_columns += d_masking
      return (d_keys, d_columns), d_queries

    block_values = jax.tree.map(
      lambda x, blocks=blocks: x[blocks], (norm, delta, d_out, d_seen)
    )
    narrow, d_query = jax.lax.scan(
      step,
      _up_to(width, grown),
      (_numbered(queries, blocks), before, *block_values),
      reverse=True,
    )
    grown = _put_up_to(width, grown, narrow)
    d_queries.append(d_query)
  d_queries = jax.tree.map(lambda *x: jnp.concatenate(x), *d_queries[::-1])
  return d_queries, grown[0], None


attend.__wrapped__.defvjp(_forward, _backward)  # type: ignore[attr-defined]


def _tile(index, queries, span, columns, start, static):
  """Returns the Tile of a block and its span, and starts the block's mask."""
  block = queries.query.shape[-1]
  of_block = functools.partial(block_of, index=index, block=block)
  levels = span.levels
  keys = span._replace(
    bias=None if span.bias is None else of_block(span.bias, axis=3),
    selection_bias=None
    if span.selection_bias is None
    else of_block(span.selection_bias, axis=3),
  )
  visibility = Visibility.causal(
    jnp.arange(span.key.shape[2]),
    index * block + jnp.arange(block),
    None if start is None else of_block(start, axis=1),
    static.selecting.constraints,
  )
  return Tile(
    queries,
    keys,
    columns,
    visibility,
    static.selecting,
    query_levels=None
    if levels is None
    else of_block(levels, axis=2).swapaxes(2, 3),
  )


def _add(d_keys: Keys, d_tile: Keys, first) -> Keys:
  """Adds the gradients of a tile whose queries start at `first`."""

  def add(total, part):
    if total is None or part is None:
      return total
    if total.shape[3] == part.shape[3]:
      return total + part
    # A bias: the tile has the queries of its block alone.
    size = part.shape[3]
    part += jax.lax.dynamic_slice_in_dim(total, first, size, 3)
    return jax.lax.dynamic_update_slice_in_dim(total, part, first, 3)

  return Keys(*map(add, d_keys, d_tile))


def _spans(queries, static):
  """Yields each span's blocks, a slice, and the keys that it reads."""
  blocks, block = queries.query.shape[0], queries.query.shape[-1]
  for start in range(0, blocks, static.blocks_a_span):
    stop = min(start + static.blocks_a_span, blocks)
    yield slice(start, stop), stop * block


def _numbered(queries, blocks):
  """Returns the numbers, i32[T], and the queries of some blocks."""
  numbers = jnp.arange(blocks.start, blocks.stop)
  return numbers, jax.tree.map(lambda x: x[blocks], queries)


def _up_to(width, tree):
  """Slices the first keys of each array, axis 2; an axis of size 1 stays."""
  return jax.tree.map(lambda x: x[:, :, :width], tree)


def _put_up_to(width, tree, narrow):
  """Replaces the slice that `_up_to` takes."""
  return jax.tree.map(lambda x, y: x.at[:, :, :width].set(y), tree, narrow)
