"""Blocked selective attention to live keys alone.

Before each block of queries the earlier keys that may still matter are known
(`live_keys`). The block reads its own keys and these by index, in one tile
whose width is the next of a short list of widths (`live_tiles`), so the cost
falls with what the model forgets. Where nearly all keys are alive, it reads all
earlier keys, as `blocked_spans` does. The backward pass reads the same tiles
from the last block to the first.

Source: ours; docs/forgetting.md has the proof and the figures. Adaptive pruning
of the Forgetting Transformer (arXiv 2504.06949) skips whole tiles of one head.
Here single keys are dropped, for all heads that read the same F.

Shapes: those of `blocked`, where G is 1: further groups are rows of the batch.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from selective_t5x.attention import (
  blocked_biases,
  derivatives,
  live_keys,
  live_tiles,
)
from selective_t5x.attention.blocked_tiles import (
  Keys,
  Queries,
  Selecting,
  Tile,
  Visibility,
  block_of,
  no_columns,
  numbers_of,
)
from selective_t5x.attention.distance_bias import Window


class Static(NamedTuple):
  """Compile-time constants of a call.

  Attributes:
    memory_tau: that of M, or None.
    forget_below: the limit of the weight of all dropped keys; positive.
    blocks_a_span: as in `blocked_spans`, for blocks that read all keys.
    selecting: which logits select, with the relu.
  """

  memory_tau: float | None
  forget_below: float
  blocks_a_span: int
  selecting: Selecting


def attend(queries: Queries, keys: Keys, start, static: Static):
  """Attends to live keys.

  Args:
    queries: with G selecting heads.
    keys: if G > 1, biases that are the same for all heads.
    start: i32[B, N], of `masks.segment_starts`; None for one segment.
    static: constants.

  Returns:
    out [T, B, H, D, Q], M f32[T, B, Q] or None, and the number of live keys
    before each block, f32[T, B], the mean over the G.
  """
  blocks, batch, heads, size, block = queries.query.shape
  groups = static.selecting.groups

  def split(x, axis):
    """Moves the groups of an array's heads to the axis of the batch."""
    # Several groups have one bias for all heads.
    if x is None or groups == 1 or isinstance(x, Window) or x.shape[axis] == 1:
      return x
    shape = list(x.shape)
    shape[axis - 1 : axis + 1] = [x.shape[axis - 1] * groups, -1]
    return x.reshape(shape)

  queries = Queries(*(split(x, 2) for x in queries))
  keys = Keys(*(split(x, 1) for x in keys))
  if start is not None:
    start = jnp.repeat(start, groups, axis=0)
  static = static._replace(selecting=static.selecting.of_group())
  out, seen, live = _attend(queries, keys, start, static)
  if seen is not None:
    seen = jnp.mean(seen.reshape(blocks, batch, groups, block), axis=2)
  live = jnp.mean(live.reshape(blocks, batch, groups), axis=2)
  return out.reshape(blocks, batch, heads, size, block), seen, live


# As in `blocked_spans`.
@functools.partial(jax.jit, static_argnums=3)
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(queries, keys, start, static):
  return _forward(queries, keys, start, static)[0]


def _forward(queries, keys, start, static):
  tau = static.memory_tau
  bound = live_keys.bound(
    queries,
    keys,
    start,
    forget_below=static.forget_below,
    protect_bos=static.selecting.constraints.protect_bos,
    # M counts a key until its F reaches tau.
    floor=0.0 if tau is None else tau,
  )
  plan = live_tiles.Plan.of(queries, static.blocks_a_span)

  def step(columns, block_queries):
    index, block_queries = block_queries
    alive = bound.alive(index, columns[:, 0])

    def read(way, inputs, after):
      queries, columns, keys, start = inputs
      tile = _Row(keys, start, index, static).tile(queries, columns, way)
      result = *tile.softmax().result(), tile.seen(tau)
      return result, way.add(after, jnp.sum(tile.scores, axis=3))

    inputs = block_queries, columns, keys, start
    (out, norm, seen), after = plan.read(index, alive, read, inputs, columns)
    counts = jnp.sum(alive, axis=1)
    return after, (out, norm, columns, seen, counts)

  numbered = numbers_of(queries), queries
  _, (out, norm, befores, seen, counts) = jax.lax.scan(
    step, no_columns(keys, static.selecting), numbered
  )
  saved = queries, keys, start, out, norm, befores, bound
  return (out, seen, counts.astype(out.dtype)), saved


def _backward(static, saved, cotangents):
  # JAX cannot differentiate a loop whose number of rounds it does not know.
  backward = derivatives.once(
    functools.partial(_gradients, static),
    'blocked attention that drops keys',
    'forget_below = 0, which has second ones too',
  )
  return (*backward(saved, cotangents), None)


def _gradients(static, saved, cotangents):
  queries, keys, start, out, norm, befores, bound = saved
  d_out, d_seen, _ = cotangents
  delta = jnp.sum(d_out * out, axis=3)
  plan = live_tiles.Plan.of(queries, static.blocks_a_span)

  def step(grown, of_block):
    index, before, *of_block = of_block

    def read(way, inputs, grown):
      (queries, norm, delta, d_out, d_seen), before, keys, start = inputs
      d_keys, d_columns = grown
      row = _Row(keys, start, index, static)
      d_queries, d_tile, d_masking = row.tile(queries, before, way).gradients(
        norm, delta, d_out, d_seen, way.take(d_columns), static.memory_tau
      )
      d_keys = blocked_biases.add(d_keys, d_tile, way, index)
      return d_queries, (d_keys, way.add(d_columns, d_masking))

    alive = bound.alive(index, before[:, 0])
    inputs = of_block, before, keys, start
    d_queries, grown = plan.read(index, alive, read, inputs, grown)
    return grown, d_queries

  numbers = numbers_of(queries)
  (d_keys, _), d_queries = jax.lax.scan(
    step,
    (jax.tree.map(jnp.zeros_like, keys), no_columns(keys, static.selecting)),
    (numbers, befores, queries, norm, delta, d_out, d_seen),
    reverse=True,
  )
  return d_queries, d_keys


_attend.__wrapped__.defvjp(_forward, _backward)  # type: ignore[attr-defined]


class _Row:
  """Reads the keys of one block's tile."""

  def __init__(self, keys, start, index, static):
    self._selecting = static.selecting
    self._keys, self._start, self._index = keys, start, index

  def tile(self, queries: Queries, columns, way: live_tiles.Way) -> Tile:
    """Returns the tile of the keys that are read.

    Args:
      queries: `Queries` of the block.
      columns: f32[B, 1, N].
      way: which keys.
    """
    block = queries.query.shape[-1]
    visibility = Visibility.causal(
      way.positions,
      self._index * block + jnp.arange(block),
      None
      if self._start is None
      else block_of(self._start, self._index, block, 1),
      self._selecting.constraints,
    )
    return Tile(
      queries,
      blocked_biases.of_tile(self._keys, way, self._index, block),
      way.take(columns),
      visibility,
      self._selecting,
    )
