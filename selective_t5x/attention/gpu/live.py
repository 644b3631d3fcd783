"""Which keys the GPU kernels read where dead ones are dropped.

A key is dead for a block of queries, and for all later ones, once the column
sums of S above the block exceed its limit (`limits`). Triton loads rows through
pointers, so rows by index cost what rows in order cost. So there is one way of
reading keys, not several between which a block chooses:

  forward, queries: each block of queries has a list of the earlier keys that
    are alive, and of its own. Its loop has as many rounds as the list has
    tiles;
  keys: programs own keys by index. Of every 128 keys of the row those that live
    longest come first. So the keys of a program begin and die at about the same
    blocks of queries, and its loop goes from where the last one dies up to
    where the first one begins. In the order of the row most programs would have
    a key that lives to the end; in the order of their deaths alone, keys from
    all over the row.

A key that is dead for a block of queries counts as one that it may not see, in
all kernels: gradients are those of what the forward kernel computes. The lists
are N * N / block numbers, as many as the column sums. Source: ours.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from selective_t5x.attention.gpu.blocks import Blocks
from selective_t5x.attention.gpu.plan import BlockSizes, Launch, Plan, Range
from selective_t5x.attention.gpu.tile import Columns

# How many keys a program that lists them compares at once.
_CHUNK = 512
# How many keys of the row are ordered by their deaths.
_WINDOW = 128


class Lists(NamedTuple):
  """The keys that each block of queries reads.

  T is the number of blocks of queries.

  Attributes:
    keys: i32[B, G, T, N], the earlier ones that are alive and the block's own,
      in ascending order; then any numbers.
    counts: i32[B, G, T], how many there are.
  """

  keys: Any
  counts: Any


class Order(NamedTuple):
  """The keys in the order of the kernel for keys.

  J is the number of its blocks of keys.

  Attributes:
    keys: i32[B, G, N].
    ends: i32[B, G, N], the end of each of them, see `Live`.
    firsts: i32[B, G, J], the first block of queries that sees a key of each
      block.
    lasts: i32[B, G, J], the largest of the ends of each block.
  """

  keys: Any
  ends: Any
  firsts: Any
  lasts: Any


class Live(NamedTuple):
  """What the kernels read of keys.

  Attributes:
    lists: for the kernels whose programs own queries.
    ends: i32[B, G, N], the block of queries from which on each key is dead, T
      for one that never is.
  """

  lists: Lists
  ends: Any


def lists(plan: Plan, sums: jax.Array, limits: jax.Array) -> Lists:
  """Lists the keys that each block of queries reads, in a kernel.

  XLA would search or sort, with a pass over all numbers for each bit of N.

  Args:
    plan: the plan of the call.
    sums: f32[B, G, T, N], the column sums of S above each block.
    limits: f32[B, G, T, N], see `limits`.
  """
  blocks = Blocks(plan, Launch())
  spec = blocks.of_program(plan.query_blocks, plan.length)
  whole = (plan.batch, plan.groups, plan.query_blocks)
  return blocks.call(
    _list_kernel,
    (sums, limits),
    name='attention_lists',
    blocks=plan.query_blocks,
    in_specs=(spec, spec),
    out=Lists(
      (spec, jax.ShapeDtypeStruct((*whole, plan.length), jnp.int32)),
      (
        blocks.of_program(plan.query_blocks),
        jax.ShapeDtypeStruct(whole, jnp.int32),
      ),
    ),
  )


def _list_kernel(plan: Plan, _, sums, limits, out: Lists):
  """Lists the keys of one block of queries, chunk by chunk."""
  # The last blocks have most chunks: they start first.
  i = plan.query_blocks - 1 - pl.program_id(0)
  size = plan.block.query
  own = i * size

  def add(chunk, count):
    keys = chunk * _CHUNK + jnp.arange(_CHUNK, dtype=jnp.int32)
    earlier = keys < own
    slots = pl.ds(chunk * _CHUNK, _CHUNK)
    above, limit = (
      triton.load(x.at[i, slots], mask=earlier, other=0.0)
      for x in (sums, limits)
    )
    # A limit that is not a number keeps its key.
    alive = earlier & jnp.logical_not(above > limit)
    rank = jnp.cumsum(alive.astype(jnp.int32))
    # Nothing is stored of the others, beyond the row.
    place = jnp.where(alive, count + rank - 1, plan.length)
    triton.store(out.keys.at[i, place], keys, mask=alive)
    return count + jnp.sum(alive.astype(jnp.int32))

  count = lax.fori_loop(0, pl.cdiv(own, _CHUNK), add, jnp.int32(0))
  out.keys[i, pl.ds(count, size)] = own + jnp.arange(size, dtype=jnp.int32)
  out.counts[i] = count + size


def ends(plan: Plan, sums: jax.Array, limits: jax.Array) -> jax.Array:
  """Returns `Live.ends`.

  Args:
    plan: the plan of the call.
    sums: as in `lists`.
    limits: as in `lists`.
  """
  blocks = jnp.arange(plan.query_blocks, dtype=jnp.int32)[:, None]
  tokens = jnp.arange(plan.length, dtype=jnp.int32)
  own = tokens // plan.block.query
  # The sums above the diagonal are never written.
  alive = (blocks > own) & jnp.logical_not(sums > limits)
  return 1 + jnp.max(jnp.where(alive, blocks, own), axis=2)


def ordered(ends: jax.Array, block: BlockSizes) -> Order:
  """Returns the order of the kernel for keys.

  Args:
    ends: see `Live`.
    block: the tiles, whose keys divide N.
  """
  *rows, length = ends.shape
  windows = (*rows, -1, math.gcd(_WINDOW, length))
  keys = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), ends.shape)
  ends, keys = lax.sort(
    (-ends.reshape(windows), keys.reshape(windows)), num_keys=1, is_stable=True
  )
  blocks = (*rows, -1, block.backward_key)
  firsts = jnp.min(keys.reshape(blocks) // block.query, axis=3)
  lasts = jnp.max(-ends.reshape(blocks), axis=3)
  whole = (*rows, length)
  return Order(keys.reshape(whole), -ends.reshape(whole), firsts, lasts)


def all_alive(plan: Plan) -> Mapping[str, np.ndarray]:
  """Returns the numbers of `Lists` and `Order` that bound loops, at the most.

  Args:
    plan: the plan of the call.

  Returns:
    counts, firsts and lasts by name, where no key dies.
  """
  blocks = np.arange(plan.query_blocks)
  size = plan.block.backward_key
  firsts = np.arange(plan.length // size) * size // plan.block.query
  return {
    name: np.broadcast_to(x, (plan.batch, plan.groups, len(x)))
    for name, x in (
      ('counts', (blocks + 1) * plan.block.query),
      ('firsts', firsts),
      ('lasts', np.full_like(firsts, plan.query_blocks)),
    )
  }


def lists_spec(blocks: Blocks, lists: Lists | None) -> Lists | None:
  """Returns the block specs of lists; None without."""
  if lists is None:
    return None
  plan = blocks.plan
  return Lists(
    blocks.of_group(plan.query_blocks, plan.length),
    blocks.of_group(plan.query_blocks),
  )


def order_spec(blocks: Blocks, order: Order | None) -> Order | None:
  """Returns the block specs of an order; None without."""
  if order is None:
    return None
  return Order(*(blocks.of_group(x.shape[2]) for x in order))


def key_blocks(plan: Plan, lists: Lists | None, i, size: int) -> list[Range]:
  """Returns the tiles of keys of a size that query block i reads.

  Args:
    plan: the plan of the call.
    lists: a program's refs; None for all earlier keys, in order.
    i: i32[], the block of queries.
    size: the keys of a tile.
  """
  if lists is None:
    return plan.key_blocks(i, size)
  count = lists.counts[i]
  end = pl.cdiv(count, size)
  if plan.behind is None:
    return [Range(0, end, False)]
  # At most so many keys are nearer than `behind`, the last ones of the list.
  near = plan.block.query + max(plan.behind - 1, 0)
  far = jnp.maximum(count - near, 0) // size
  return [Range(0, far, False), Range(far, end, True)]


def columns_of(plan: Plan, lists: Lists | None, i, j, size: int) -> Columns:
  """Returns the keys of tile j of query block i; see `key_blocks`."""
  if lists is None:
    return Columns.in_order(j * size, size)
  ranks = j * size + jnp.arange(size, dtype=jnp.int32)
  listed = ranks < lists.counts[i]
  keys = lists.keys[i, pl.ds(j * size, size)]
  # A key of the block's own stands for those beyond the list.
  keys = jnp.where(listed, keys, i * plan.block.query)
  return Columns.by_index(keys, listed, plan.length)


class Owned(NamedTuple):
  """The keys of a program of the kernel for keys.

  Attributes:
    slots: how refs are indexed to read and write them.
    query_blocks: the blocks of queries that read one, from the first one on.
    columns: returns the keys as block i of queries, i32[], sees them.
  """

  slots: Any
  query_blocks: list[Range]
  columns: Any


def owned_keys(plan: Plan, order: Order | None, j, size: int) -> Owned:
  """Returns what program j owns.

  Args:
    plan: the plan of the call.
    order: a program's refs; None for all keys, in order.
    j: i32[], the block of keys.
    size: its keys.
  """
  slots = pl.ds(j * size, size)
  if order is None:
    columns = Columns.in_order(j * size, size)
    ranges = plan.query_blocks_of(j, size, plan.query_blocks)
    return Owned(slots, ranges, lambda i: columns)
  keys, ends = order.keys[slots], order.ends[slots]
  first, last = order.firsts[j], order.lasts[j]

  def columns_at(i):
    return Columns.by_index(keys, i < ends, plan.length)

  ranges = [Range(first, last, False)]
  if plan.behind is not None:
    # The keys may be any of those that are ordered together.
    window = math.gcd(_WINDOW, plan.length)
    far = plan.first_far(pl.cdiv((j + 1) * size, window) * window - 1, last)
    ranges = [Range(first, far, True), Range(far, last, False)]
  return Owned(keys, ranges, columns_at)
