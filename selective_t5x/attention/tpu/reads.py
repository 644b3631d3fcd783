"""Which tiles of keys each block of queries of the TPU kernels reads.

A dead key (`live_keys`) is not read. Whole tiles of dead keys are rare, so keys
that live are *listed*: a row is cut into spans of some blocks, and the keys
that are alive where the next span starts are moved together, once. A block of
queries reads the live keys of its own span in place and those of earlier spans
in tiles of listed keys; a tile is read if it has one key for the block. So a
key has one or two places, whose gradients are added.

A tile dies with its last key. So the list is in order of how long keys live,
in a few classes, and in each of when they come: at any time the tiles that are
read are a few runs of neighbours, whose keys are mostly alive.

Lists cost bytes, too. A row in which reading all live tiles in place moves less
does so. Source: ours.

Shapes: B batch, G selection heads, T blocks of queries, J tiles of keys in
place, L tiles of listed keys, C listed keys, N length.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from selective_t5x.attention.tpu.plan import Plan

# A key that outlives its own span by at most so many spans is of a class with
# the others that do.
_SPANS_OF_CLASSES = (1, 4)
# Tiles moved, forward and backward, for each tile that is read: keys and values
# by the kernels of the output and of the queries' gradient, and queries and the
# cotangent by the one of the keys'.
_MOVES_A_TILE = 3
# And for each tile of the list: keys and values are copied, for either pass,
# and their gradients are written, read and added.
_MOVES_A_LISTED_TILE = 8


class Table(NamedTuple):
  """Tiles in the order in which a kernel computes them; integers are i32.

  Attributes:
    places: [B, G, lines, W], for each outer block its inner ones.
    counts: [B, G, lines], how many of a line count.
    used: [B, G], how many lines have any; those come first.
  """

  places: Any
  counts: Any
  used: Any


class Reads(NamedTuple):
  """What the kernels read.

  Attributes:
    queries: lines of T blocks of queries, W = J; see `place_of`.
    keys: lines of J tiles of keys, W = T: the blocks of queries that read it,
      from the last up.
    listed: likewise, lines of L tiles of listed keys; None without lists.
    order: i32[B, G, C], the numbers of the listed keys, then N; None without
      lists.
    tiles: i32[], how many tiles of listed keys the rows have at most; None
      without lists.
  """

  queries: Table
  keys: Table
  listed: Table | None = None
  order: Any = None
  tiles: Any = None


def place_of(code, tiles: int):
  """Returns what a place of `Reads.queries` stands for.

  Args:
    code: i32[].
    tiles: J.

  Returns:
    Three i32[]: the tile in place, the tile of the list, and which of the two
    is computed: 1 for that of the list. The other one is that of a neighbour in
    the table, so that nothing is moved for it.
  """
  code, of_list = lax.div(code, np.int32(2)), lax.rem(code, np.int32(2))
  size = np.int32(tiles)
  return lax.rem(code, size), lax.div(code, size), of_list


def deaths(plan: Plan, sums: jax.Array, limits: jax.Array) -> jax.Array:
  """Returns i32[B, G, N], the first block of queries that does not need a key.

  It is T for a key that no block after it can forget. What is not a number is
  not dead.

  Args:
    plan: the plan of the call.
    sums: f32[B, G, T, 1, N], F of the first query of each block.
    limits: f32[B, G, T, 1, N], of `limits.limits`.
  """
  alive = ~(sums > limits)[:, :, :, 0] & _before(plan)
  block = jnp.arange(1, plan.query_blocks + 1, dtype=jnp.int32)
  return jnp.max(jnp.where(alive, block[:, None], 0), axis=2)


def _before(plan):
  """Returns bool[T, N], which keys come before a block of queries."""
  first = jnp.arange(plan.query_blocks) * plan.block.query
  return jnp.arange(plan.length) < first[:, None]


def reads(plan: Plan, deaths: jax.Array) -> Reads:
  """Returns what the kernels read.

  Args:
    plan: the plan of the call.
    deaths: of `deaths`.
  """
  length = deaths.shape[2]
  # What the plan decides is a constant: XLA:CPU takes long to compile the
  # arithmetic of all places.
  block = np.arange(plan.query_blocks, dtype=np.int32)[:, None]
  tile = np.arange(plan.key_blocks, dtype=np.int32)
  alive = (block < deaths[:, :, None]) & _before(plan)
  # A block reads its own keys.
  own = plan.runs(block, tile) & (
    (tile + 1) * plan.block.key > block * plan.block.query
  )
  in_place = own | _any_of_tile(plan, alive)
  if not plan.lists:
    queries = _of_queries(in_place, in_place[..., :0])
    return Reads(queries, _of_keys(in_place))
  order = _order(plan, deaths)
  start = block * plan.block.query // plan.span * plan.span
  death = jnp.take_along_axis(
    deaths, jnp.minimum(order, length - 1), axis=2, mode='clip'
  )
  needed = (order[:, :, None] < start) & (block < death[:, :, None])
  of_list = _any_of_tile(plan, needed)
  of_span = in_place & (tile * plan.block.key >= start)
  pays = _pays(in_place, of_span, of_list)[:, :, None, None]
  in_place = jnp.where(pays, of_span, in_place)
  listed = _of_keys(of_list & pays)
  return Reads(
    _of_queries(in_place, of_list & pays),
    _of_keys(in_place),
    listed,
    jnp.where(pays[:, :, 0], order, length),
    jnp.max(listed.used),
  )


def _any_of_tile(plan, x):
  """Returns bool[B, G, T, tiles] from bool[B, G, T, keys]."""
  x = jnp.any(x.reshape(*x.shape[:3], -1, plan.block.key), axis=4)
  # Each table is made from it: it is not to be fused into all of them.
  return lax.optimization_barrier(x)


def _pays(in_place, of_span, of_list):
  """Returns bool[B, G], whether a row with a list moves less than without."""

  def tiles(*reads):
    return sum(jnp.sum(x, axis=(2, 3)) for x in reads)

  copied = jnp.sum(jnp.any(of_list, axis=2), axis=2)
  with_list = _MOVES_A_TILE * tiles(of_span, of_list)
  with_list += _MOVES_A_LISTED_TILE * copied
  # A line of the table has no more than J places.
  widest = jnp.max(_counts(of_span) + _counts(of_list), axis=2)
  fits = widest <= in_place.shape[3]
  return fits & (with_list < _MOVES_A_TILE * tiles(in_place))


def _order(plan, deaths):
  """Returns the numbers of the keys to list, i32[B, G, C], then N."""
  length = deaths.shape[2]
  blocks = plan.span // plan.block.query
  keys = jnp.arange(length, dtype=jnp.int32)
  # How many spans after its own a key sees the start of.
  outlived = (deaths - 1) // blocks - keys // plan.span
  classes = sum(jnp.where(outlived > n, 1, 0) for n in _SPANS_OF_CLASSES)
  rank = len(_SPANS_OF_CLASSES) - classes
  rank = jnp.where(outlived > 0, rank, len(_SPANS_OF_CLASSES) + 1)
  size = plan.lists * plan.block.key
  order = jnp.argsort(rank, axis=2, stable=True)[..., :size]
  count = jnp.sum(outlived > 0, axis=2)
  order = jnp.where(jnp.arange(size) < count[..., None], order, length)
  return order.astype(jnp.int32)


def _first_true(x, width):
  """Returns i32[..., W], where x is true along its last axis, then the rest."""
  order = jnp.argsort(~x, axis=-1, stable=True)
  return order[..., :width].astype(jnp.int32)


def _counts(x):
  return jnp.sum(x, axis=-1, dtype=jnp.int32)


def _of_queries(in_place, of_list) -> Table:
  """Returns the table of the blocks of queries: listed keys come first.

  Args:
    in_place: bool[B, G, T, J].
    of_list: bool[B, G, T, L].
  """
  tiles, lists = in_place.shape[3], of_list.shape[3]
  needed = jnp.concatenate([of_list, in_place], axis=3)
  number = _first_true(needed, tiles)
  first = jnp.argmax(in_place, axis=3, keepdims=True)
  last = jnp.max(
    jnp.where(of_list, jnp.arange(lists), 0), axis=3, keepdims=True, initial=0
  )
  is_listed = number < lists
  tile = jnp.where(is_listed, first, number - lists)
  listed = jnp.where(is_listed, number, last)
  places = (tile + tiles * listed) * 2 + is_listed
  counts = _counts(needed)
  used = jnp.full(counts.shape[:2], counts.shape[2], jnp.int32)
  return Table(places.astype(jnp.int32), counts, used)


def _of_keys(needed) -> Table:
  """Returns the table of the tiles of keys, from bool[B, G, T, tiles]."""
  blocks = needed.shape[2]
  upwards = jnp.arange(blocks, 0, -1)[:, None]
  order = jnp.argsort(jnp.where(needed, upwards, blocks + 1), axis=2)
  counts = _counts(needed.swapaxes(2, 3))
  return Table(
    order.swapaxes(2, 3).astype(jnp.int32), counts, _counts(counts > 0)
  )


def counted(plan: Plan, reads: Reads) -> Reads:
  """Returns the tables, in NumPy, at which the kernels' costs are counted.

  They are known ones, or those of rows in which no key dies.
  """
  known = isinstance(reads.queries.places, np.ndarray)
  return reads if known else every(plan)


def every(plan: Plan) -> Reads:
  """Returns the tables, in NumPy, of rows in which no key dies."""
  block, tile = np.arange(plan.query_blocks), np.arange(plan.key_blocks)
  seen = plan.runs(block[:, None], tile)

  def table(places, counts, used):
    shape = (plan.batch, plan.groups)
    return Table(
      *(
        np.broadcast_to(np.asarray(x, np.int32), (*shape, *np.shape(x)))
        for x in (places, counts, used)
      )
    )

  in_order = np.broadcast_to(2 * tile, seen.shape)
  queries = table(in_order, np.sum(seen, axis=1), len(block))
  upwards = np.broadcast_to(block[::-1], seen.T.shape)
  keys = table(upwards, np.sum(seen, axis=0), len(tile))
  if not plan.lists:
    return Reads(queries, keys)
  none = np.zeros(plan.lists)
  return Reads(
    queries, keys, table(np.zeros((plan.lists, len(block))), none, 0)
  )
