"""Which keys a block of queries reads: listed live ones, or all earlier ones.

A compiled program has arrays of fixed sizes, while the number of live keys is
known at run time. So each block chooses between a few ways of reading, each of
a fixed width, and takes the cheapest that holds its live keys: the live keys by
index, padded to a width, and the block's own keys; or all keys up to the end of
a span of blocks. Source: ours.

Shapes: those of `blocked_live`; W is the number of listed keys, K of all keys
that are read.
"""

import abc
import functools
import itertools
import re
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from selective_t5x.attention import live_keys, mesh
from selective_t5x.attention.blocked_tiles import Queries, block_of

Inputs = TypeVar('Inputs')
Result = TypeVar('Result')
Grown = TypeVar('Grown')
# The name scope of the choice between ways of reading.
_SCOPE = 'live_tiles'
# A listed key costs as much as this many keys that are read in place.
_LISTED = 1.15


class Way(abc.ABC):
  """A way of reading keys: all arrays have the key as axis 2.

  Attributes:
    positions: i32[K] or i32[B, K], the numbers of the keys that are read; N
      where nothing is read.
  """

  positions: jax.Array

  @abc.abstractmethod
  def take(self, x: jax.Array) -> jax.Array:
    """Returns the keys of an array; an axis of size 1 stays.

    Args:
      x: [B or 1, ., N or 1, ...].

    Returns:
      [B or 1, ., K or 1, ...], any number where nothing is read.
    """

  @abc.abstractmethod
  def add(self, x: jax.Array, values: jax.Array) -> jax.Array:
    """Adds values to the keys; those where nothing is read are dropped.

    Args:
      x: [B or 1, ., N or 1, ...].
      values: [B or 1, ., K or 1, ...].
    """

  @abc.abstractmethod
  def rows(self, values: jax.Array, numbers: jax.Array) -> jax.Array:
    """Returns some keys of what was read, by their numbers in the row.

    Args:
      values: [B or 1, ., K, Q].
      numbers: i32[S], may lie outside the row.

    Returns:
      [B or 1, ., S, Q], zero where the key was not read.
    """


class Prefix(Way):
  """Reads all keys up to a width."""

  def __init__(self, width: int):
    self._width = width
    self.positions = jnp.arange(width)

  def take(self, x):
    """See `Way`."""
    return x[:, :, : self._width]

  def add(self, x, values):
    """See `Way`."""
    if x.shape[2] == values.shape[2]:
      return x + values
    return x.at[:, :, : self._width].add(values)

  def rows(self, values, numbers):
    """See `Way`."""
    index = jnp.clip(numbers, 0, self._width - 1)
    return jnp.where((index == numbers)[:, None], values[:, :, index], 0)


class Listed(Way):
  """Reads the live keys before a block by index, and the block's own keys."""

  def __init__(
    self, width: int, alive: jax.Array, index: jax.Array, block: int
  ):
    """Lists the keys.

    Args:
      width: W, at least the number of live keys of each row.
      alive: bool[B, N], which keys before the block are alive.
      index: i32[], the number of the block.
      block: Q.
    """
    self._index, self._block = index, block
    self._ids = live_keys.listed(alive, width)
    own = jnp.broadcast_to(
      index * block + jnp.arange(block), (alive.shape[0], block)
    )
    self.positions = jnp.concatenate([self._ids, own], axis=1)

  def take(self, x):
    """See `Way`."""
    if x.shape[2] == 1:
      return x
    # Each row of the batch has a list of its own.
    x = jnp.broadcast_to(x, (self._ids.shape[0], *x.shape[1:]))
    listed = jax.vmap(lambda x, ids: x.at[:, ids].get(mode='clip'))(
      x, self._ids
    )
    own = block_of(x, self._index, self._block, 2)
    return jnp.concatenate([listed, own], axis=2)

  def add(self, x, values):
    """See `Way`."""
    if x.shape[2] == 1:
      return x + values
    listed, own = jnp.split(values, [self._ids.shape[1]], axis=2)
    if x.shape[0] == values.shape[0]:
      x = jax.vmap(functools.partial(_put, unique=True))(x, self._ids, listed)
    else:
      # One bias for all rows of the batch, whose lists have keys in common.
      listed = jnp.moveaxis(listed, 0, 1)
      listed = listed.reshape(listed.shape[0], -1, *listed.shape[3:])
      x = _put(x[0], self._ids.reshape(-1), listed, unique=False)[None]
      own = jnp.sum(own, axis=0, keepdims=True)
    own += block_of(x, self._index, self._block, 2)
    return jax.lax.dynamic_update_slice_in_dim(
      x, own, self._index * self._block, 2
    )

  def rows(self, values, numbers):
    """See `Way`."""
    listed, own = jnp.split(values, [self._ids.shape[1]], axis=2)

    def of_list(values, ids):
      index = jnp.searchsorted(ids, numbers)
      index = jnp.minimum(index, ids.shape[0] - 1)
      return jnp.where((ids[index] == numbers)[:, None], values[:, index], 0)

    place = numbers - self._index * self._block
    index = jnp.clip(place, 0, self._block - 1)
    own = jnp.where((index == place)[:, None], own[:, :, index], 0)
    return jax.vmap(of_list)(listed, self._ids) + own


def _put(x, ids, values, unique):
  """Adds values [., K, ...] to the keys of x [., N, ...]; N is no key."""
  return x.at[:, ids].add(values, mode='drop', unique_indices=unique)


class Plan(NamedTuple):
  """The ways of reading between which the blocks of a call choose.

  Attributes:
    blocks: T.
    block: Q.
    blocks_a_span: how many blocks end at the same key where all are read.
    widths: those of lists, in ascending order.
  """

  blocks: int
  block: int
  blocks_a_span: int
  widths: tuple[int, ...]

  @classmethod
  def of(cls, queries: Queries, blocks_a_span: int) -> 'Plan':
    """Returns the Plan of a call.

    Args:
      queries: of all blocks.
      blocks_a_span: blocks that end at the same key where all are read.
    """
    blocks, block = queries.query.shape[0], queries.query.shape[-1]
    # A longer list costs more than reading all keys.
    longest = blocks * block / _LISTED - block
    widths = itertools.takewhile(lambda width: width <= longest, _widths())
    return cls(blocks, block, blocks_a_span, tuple(widths))

  @property
  def prefixes(self) -> tuple[int, ...]:
    """The widths of reading all keys, in ascending order."""
    ends = range(self.blocks_a_span, self.blocks, self.blocks_a_span)
    return tuple(self.block * end for end in (*ends, self.blocks))

  def choice(self, index: jax.Array, count: jax.Array) -> jax.Array:
    """Returns the number of the cheapest way that holds a block's live keys.

    Args:
      index: i32[], the number of the block.
      count: i32[], the largest number of live keys of a row.

    Returns:
      i32[]: first the lists, then the prefixes.
    """
    prefix = index // self.blocks_a_span
    if not self.widths:
      return prefix
    listed = jnp.searchsorted(
      jnp.asarray(self.widths), count, method='compare_all'
    )
    costs = [_LISTED * (width + self.block) for width in self.widths]
    cost = jnp.asarray([*costs, jnp.inf])[listed]
    is_listed = cost < jnp.asarray(self.prefixes)[prefix]
    return jnp.where(is_listed, listed, len(self.widths) + prefix)

  def read(
    self,
    index: jax.Array,
    alive: jax.Array,
    read: Callable[[Way, Inputs, Grown], tuple[Result, Grown]],
    inputs: Inputs,
    grown: Grown,
  ) -> tuple[Result, Grown]:
    """Reads the keys of a block in the cheapest way.

    Args:
      index: i32[], the number of the block.
      alive: bool[B, N], which keys before the block are alive.
      read: takes a Way, `inputs` and `grown`; its results have the same shapes
        for each Way. It closes over no other arrays.
      inputs: arrays that `read` reads.
      grown: arrays to which `read` adds.
    """
    choice = self.choice(index, jnp.max(jnp.sum(alive, axis=1)))

    def run(number, alive, inputs, grown):
      way: Way
      if number < len(self.widths):
        way = Listed(self.widths[number], alive, index, self.block)
      else:
        way = Prefix(self.prefixes[number - len(self.widths)])
      return read(way, inputs, grown)

    count = len(self.widths) + len(self.prefixes)
    all_live = f'{_SCOPE}{len(self.prefixes)}'
    if mesh.platform() != 'cpu':
      branches = [functools.partial(run, number) for number in range(count)]
      with jax.named_scope(all_live):
        return jax.lax.switch(choice, branches, alive, inputs, grown)
    # A condition of XLA:CPU copies what its branches add to; a loop of one or
    # no round does not. The barrier keeps what a loop computes inside it.
    shapes = jax.eval_shape(
      functools.partial(run, count - 1), alive, inputs, grown
    )[0]
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), grown
    for number in range(count):

      def body(round_, state, number=number):
        of_round = jax.lax.optimization_barrier((alive, inputs, round_))
        of_alive, of_inputs, _ = of_round
        return run(number, of_alive, of_inputs, state[1])

      rounds = (choice == number).astype(jnp.int32)
      is_list = number < len(self.widths)
      with jax.named_scope(f'{_SCOPE}0' if is_list else all_live):
        state = jax.lax.fori_loop(0, rounds, body, state)
    return state


def _widths():
  """Yields widths of lists: steps of 64, then of a half and a third."""
  yield from (64, 128, 192)
  for power in itertools.count(8):
    yield 1 << power
    yield 3 << power - 1


def prefixes_of(eqn) -> int | None:
  """Returns what an equation of a jaxpr reads, if it is of `Plan.read`.

  Returns:
    For a loop over all keys of a span, or the choice between all ways, the
    number of spans, whose branches are the last ones; 0 for a loop over listed
    keys; None for any other equation.
  """
  if eqn.primitive.name not in ('while', 'cond'):
    return None
  match = re.search(rf'{_SCOPE}(\d+)', str(eqn.source_info.name_stack))
  return int(match.group(1)) if match else None
