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

from selective_t5x.attention.blocked_biases import (
  add,
  of_tile,
  put_up_to,
  up_to,
)
from selective_t5x.attention.blocked_tiles import (
  Selecting,
  Tile,
  Visibility,
  block_of,
  no_columns,
  numbers_of,
)
from selective_t5x.attention.live_tiles import Prefix


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
    span = up_to(width, keys)

    def step(columns, block, span=span):
      index, rows = block
      tile, _ = _tile(index, rows, span, columns, start, static)
      before, seen = columns, None
      if columns is not None:
        columns = tile.masking[..., -1] + tile.scores[..., -1]
        seen = tile.seen(static.memory_tau)
      return columns, (*tile.softmax().result(), before, seen)

    narrow, result = jax.lax.scan(
      step, up_to(width, columns), _numbered(queries, blocks)
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
  delta = jnp.sum(d_out * out, axis=3)
  # The keys' gradients and the column sums of dF grow from the last block to
  # the first.
  grown = jax.tree.map(jnp.zeros_like, keys), no_columns(keys, static.selecting)
  d_queries = []
  parts = list(zip(_spans(queries, static), befores, strict=True))
  for (blocks, width), before in reversed(parts):
    span = up_to(width, keys)

    def step(grown, xs, span=span):
      d_keys, d_columns = grown
      block, before, norm, delta, d_out, d_seen = xs
      index, rows = block
      tile, way = _tile(index, rows, span, before, start, static)
      d_queries, d_tile, d_masking = tile.gradients(
        norm, delta, d_out, d_seen, d_columns, static.memory_tau
      )
      d_keys = add(d_keys, d_tile, way, index)
      if d_columns is not None:
        d_columns += d_masking
      return (d_keys, d_columns), d_queries

    block_values = jax.tree.map(
      lambda x, blocks=blocks: x[blocks], (norm, delta, d_out, d_seen)
    )
    narrow, d_query = jax.lax.scan(
      step,
      up_to(width, grown),
      (_numbered(queries, blocks), before, *block_values),
      reverse=True,
    )
    grown = put_up_to(width, grown, narrow)
    d_queries.append(d_query)
  d_queries = jax.tree.map(lambda *x: jnp.concatenate(x), *d_queries[::-1])
  return d_queries, grown[0], None


attend.__wrapped__.defvjp(_forward, _backward)  # type: ignore[attr-defined]


def _tile(index, queries, span, columns, start, static):
  """Returns the Tile of a block and its span, and the way it reads the keys."""
  block = queries.query.shape[-1]
  way = Prefix(span.key.shape[2])
  visibility = Visibility.causal(
    way.positions,
    index * block + jnp.arange(block),
    None if start is None else block_of(start, index, block, 1),
    static.selecting.constraints,
  )
  levels = span.levels
  tile = Tile(
    queries,
    of_tile(span, way, index, block),
    columns,
    visibility,
    static.selecting,
    query_levels=None
    if levels is None
    else block_of(levels, index, block, 2).swapaxes(2, 3),
  )
  return tile, way


def _spans(queries, static):
  """Yields each span's blocks, a slice, and the keys that it reads."""
  blocks, block = queries.query.shape[0], queries.query.shape[-1]
  for start in range(0, blocks, static.blocks_a_span):
    stop = min(start + static.blocks_a_span, blocks)
    yield slice(start, stop), stop * block


def _numbered(queries, blocks):
  """Returns the numbers, i32[T], and the queries of some blocks."""
  queries = jax.tree.map(lambda x: x[blocks], queries)
  return numbers_of(queries, blocks.start), queries
