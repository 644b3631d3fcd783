"""Blocked selective attention to live keys alone.

Before each block of queries the earlier keys that may still matter are listed
(`live_keys`). The block reads its own keys, then the listed ones by index, tile
by tile, with an online softmax. The number of tiles follows from the row of the
batch with the most live keys, so the cost falls with what the model forgets.
The backward pass reads the same tiles from the last block to the first.

Source: ours; docs/forgetting.md has the proof and the figures. Adaptive pruning
of the Forgetting Transformer (arXiv 2504.06949) skips whole tiles of one head.
Here single keys are dropped, for all heads that read the same F.

Shapes: those of `blocked`, where G is 1: further groups are rows of the batch.
W is the number of keys of a tile.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from selective_t5x.attention import derivatives, live_keys
from selective_t5x.attention.blocked_tiles import (
  Keys,
  Queries,
  Selecting,
  Tile,
  Visibility,
  block_of,
  no_columns,
)

# F of the entries after the end of a list; finite, since 0 * inf is NaN.
_HIDDEN = 1e30
# The name scope of the loop over tiles, whose number of rounds is not known.
_LOOP = 'live_tiles'


class Static(NamedTuple):
  """Compile-time constants of a call.

  Attributes:
    memory_tau: that of M, or None.
    forget_below: the limit of the weight of all dropped keys; positive.
    selecting: which logits select, with the relu.
  """

  memory_tau: float | None
  forget_below: float
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
    if x is None or groups == 1 or x.shape[axis] == 1:
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
  block = queries.query.shape[-1]
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

  def step(columns, block_queries):
    index, queries = block_queries
    row = _Row(keys, start, index, block, static)
    live = bound.live(index, columns[:, 0])
    before = columns
    tile = row.own(queries, columns)
    softmax, seen = tile.softmax(), tile.seen(tau)
    columns = _put_block(columns, jnp.sum(tile.scores, axis=3), index, block)

    def read(round_, state):
      softmax, seen, columns = state
      ids = live.tile(round_)
      tile = row.listed(queries, before, ids)
      if seen is not None:
        seen += tile.seen(tau)
      columns = _put(columns, ids, jnp.sum(tile.scores, axis=3))
      return softmax.add(tile.softmax()), seen, columns

    softmax, seen, columns = _over_tiles(live, read, (softmax, seen, columns))
    return columns, (*softmax.result(), before, seen, live.counts)

  numbered = jnp.arange(queries.query.shape[0]), queries
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
  block = queries.query.shape[-1]

  def step(grown, of_block):
    index, queries, before, *gradients = of_block
    live = bound.live(index, before[:, 0])
    row = _Row(keys, start, index, block, static)

    def of_tile(tile, d_columns):
      return tile.gradients(*gradients, d_columns, static.memory_tau)

    d_keys, d_columns = grown
    d_queries, d_own, d_masking = of_tile(
      row.own(queries, before), block_of(d_columns, index, block, 2)
    )
    d_keys = row.add_own(d_keys, d_own)
    d_columns = _put_block(d_columns, d_masking, index, block)

    def read(round_, state):
      d_queries, d_keys, d_columns = state
      ids = live.tile(round_)
      d_more, d_listed, d_masking = of_tile(
        row.listed(queries, before, ids), _take(d_columns, ids, 0)
      )
      return (
        jax.tree.map(jnp.add, d_queries, d_more),
        row.add_listed(d_keys, d_listed, ids),
        _put(d_columns, ids, d_masking),
      )

    d_queries, *grown = _over_tiles(live, read, (d_queries, d_keys, d_columns))
    return tuple(grown), d_queries

  numbers = jnp.arange(queries.query.shape[0])
  (d_keys, _), d_queries = jax.lax.scan(
    step,
    (jax.tree.map(jnp.zeros_like, keys), no_columns(keys, static.selecting)),
    (numbers, queries, befores, norm, delta, d_out, d_seen),
    reverse=True,
  )
  return d_queries, d_keys


_attend.__wrapped__.defvjp(_forward, _backward)  # type: ignore[attr-defined]


def _over_tiles(live, read, state):
  with jax.named_scope(_LOOP):
    return jax.lax.fori_loop(0, live.tiles, read, state)


def is_loop(eqn) -> bool:
  """Returns whether an equation of a jaxpr is the loop over a block's tiles."""
  return eqn.primitive.name == 'while' and _LOOP in str(
    eqn.source_info.name_stack
  )


class _Row:
  """Reads the keys of one block's tiles, and adds to their gradients."""

  def __init__(self, keys, start, index, block, static):
    self._selecting = static.selecting
    self._constraints = static.selecting.constraints
    self._index, self._block = index, block
    self._start = None if start is None else self._own(start, 1)
    # Of the biases only the block's queries are read.
    self._keys = keys._replace(
      **{
        name: None if bias is None else self._own(bias, 3)
        for name, bias in _biases(keys).items()
      }
    )

  def own(self, queries, columns) -> Tile:
    """Returns the tile of the block's own keys."""
    keys = jax.tree.map(lambda x: self._own(x, 2), self._keys)
    slots = self._index * self._block + jnp.arange(self._block)
    visibility = Visibility.causal(slots, slots, self._start, self._constraints)
    return Tile(
      queries, keys, self._own(columns, 2), visibility, self._selecting
    )

  def listed(self, queries, columns, ids) -> Tile:
    """Returns the tile of listed keys.

    Args:
      queries: `Queries` of the block.
      columns: f32[B, 1, N].
      ids: i32[B, W], N after the end of a list.
    """
    keys = jax.tree.map(lambda x: _take(x, ids), self._keys)
    visibility = Visibility.of_earlier(ids, self._start, self._constraints)
    return Tile(
      queries, keys, _take(columns, ids, _HIDDEN), visibility, self._selecting
    )

  def add_own(self, d_keys: Keys, d_own: Keys) -> Keys:
    """Adds the gradients of the block's own keys."""
    return self._add(
      d_keys, d_own, lambda x, d: _put_block(x, d, self._index, self._block)
    )

  def add_listed(self, d_keys: Keys, d_listed: Keys, ids) -> Keys:
    """Adds the gradients of listed keys."""
    return self._add(d_keys, d_listed, lambda x, d: _put(x, ids, d))

  def _add(self, d_keys, d_tile, put):
    def add(total, part):
      if part is None:
        return total
      if total.shape[3] == part.shape[3]:
        return put(total, part)
      # A bias: the tile has the queries of its block alone.
      of_block = put(self._own(total, 3), part)
      return jax.lax.dynamic_update_slice_in_dim(
        total, of_block, self._index * self._block, 3
      )

    return Keys(*map(add, d_keys, d_tile))

  def _own(self, x, axis):
    return block_of(x, self._index, self._block, axis)


def _biases(keys):
  return {'bias': keys.bias, 'selection_bias': keys.selection_bias}


def _put_block(x, values, index, block):
  """Adds values to a block of keys, axis 2, or to all if it has size 1."""
  values += block_of(x, index, block, 2)
  if x.shape[2] == 1:
    return values
  return jax.lax.dynamic_update_slice_in_dim(x, values, index * block, 2)


def _take(x, ids, missing=None):
  """Gathers keys, axis 2; an axis of size 1 stays.

  Args:
    x: [B or 1, ., N, ...].
    ids: i32[B, W].
    missing: stands where ids is N; None for any finite number.
  """
  if x.shape[2] == 1:
    return x
  how = dict(mode='clip')
  if missing is not None:
    how = dict(mode='fill', fill_value=missing)

  def take(x, ids):
    return x.at[:, ids].get(**how)

  if x.shape[0] == 1:
    return jax.vmap(take, (None, 0))(x[0], ids)
  return jax.vmap(take)(x, ids)


def _put(x, ids, values):
  """Adds values to keys, axis 2; those where ids is N are dropped.

  Args:
    x: [B or 1, ., N or 1, ...].
    ids: i32[B, W].
    values: [B or 1, ., W or 1, ...].
  """
  if x.shape[2] == 1:
    return x + values

  def put(x, ids, values, unique=True):
    return x.at[:, ids].add(values, mode='drop', unique_indices=unique)

  if x.shape[0] == values.shape[0]:
    return jax.vmap(put)(x, ids, values)
  # One bias for all rows of the batch, whose lists have keys in common.
  values = jnp.moveaxis(values, 0, 1)
  values = values.reshape(values.shape[0], ids.size, *values.shape[3:])
  return put(x[0], ids.reshape(-1), values, unique=False)[None]
