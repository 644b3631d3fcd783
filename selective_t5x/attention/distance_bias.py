"""Biases of logits by the distance of key and query alone, as T5's.

Such a bias is a number for each head and distance, while the array that is
added to the logits has N x N numbers for each head. Within a block of queries
and keys that array is a Toeplitz matrix. Source: Raffel et al., arXiv
1910.10683, section 2.1, where all far distances share one number; the
computation by windows is ours.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['values'],
  meta_fields=['ahead'],
)
@dataclasses.dataclass(frozen=True)
class DistanceBias:
  """A number for each head and distance, position of key minus that of query.

  Attributes:
    values: [H, R] or, if all heads have the same, [1, R]: the biases of the
      distances from `ahead` - R + 1 to `ahead`. Distances beyond either end
      have the bias of that end.
    ahead: the largest distance, 0 or more and below R; 0 for causal attention.
  """

  values: Any
  ahead: int = 0

  @property
  def behind(self) -> int:
    """The largest distance of a query from an earlier key."""
    return self.values.shape[1] - 1 - self.ahead

  def map(self, function: Callable[[jax.Array], jax.Array]) -> 'DistanceBias':
    """Returns the biases after a function of their values."""
    return dataclasses.replace(self, values=function(self.values))

  def at(self, distance: jax.Array) -> jax.Array:
    """Returns the biases of distances, i32[...], as [H or 1, ...]."""
    index = jnp.clip(distance, -self.behind, self.ahead) + self.behind
    return self.values[:, index]

  def matrix(self, queries: int, keys: int) -> jax.Array:
    """Returns the biases of whole rows, [1, H or 1, queries, keys]."""
    return self.block(0, queries, keys)

  def block(self, first: Any, queries: int, keys: int) -> jax.Array:
    """Returns the biases of some queries of rows, [1, H or 1, queries, keys].

    Args:
      first: i32[], the position of the first query; may be traced.
      queries: how many there are.
      keys: N; their positions are 0 to N - 1.
    """
    period = queries + keys
    distance = jnp.arange(period)
    distance = jnp.where(distance < keys, distance, distance - period)
    return toeplitz(self.at(distance - first), queries, keys)[None]

  def largest(self) -> jax.Array:
    """Returns the largest bias of any distance, [1, H or 1]."""
    return jnp.max(self.values, axis=1)[None]

  def step(self, position: jax.Array, keys: int) -> jax.Array:
    """Returns the biases of one query a row, [B, H or 1, 1, keys].

    Args:
      position: i32[B], the queries' positions.
      keys: N; their positions are 0 to N - 1.
    """
    distance = jnp.arange(keys) - position[:, None]
    return self.at(distance).swapaxes(0, 1)[:, :, None]

  def within(self, length: int, *, causal: bool) -> 'DistanceBias':
    """Returns the biases without distances that do not occur.

    Args:
      length: of the longest row of queries or keys, 1 or more.
      causal: whether no query sees a later key.
    """
    behind = min(self.behind, length - 1)
    ahead = 0 if causal else min(self.ahead, length - 1)
    first = self.behind - behind
    last = self.behind + ahead
    return DistanceBias(self.values[:, first : last + 1], ahead)

  def window(self, block: int) -> 'Window':
    """Returns the Window of blocks of queries."""
    rows = self.behind + block + self.ahead
    period = rows + block
    # The column minus the row of an entry, modulo the period.
    apart = jnp.arange(period)
    apart = jnp.where(apart < block, apart, apart - period)
    strip = self.at(-apart - self.behind)
    return Window(toeplitz(strip, rows, block)[None], self.behind)


def toeplitz(strip: jax.Array, rows: int, columns: int) -> jax.Array:
  """Returns the matrices whose entries are strip[(column - row) mod P].

  It has no gather, whose gradient is slow on every kind of device: rows of
  P - 1 numbers, cut from a repeated strip of P numbers, shift by one.

  Args:
    strip: [..., P], P at least rows + columns.
    rows: of each matrix.
    columns: of each matrix.

  Returns:
    [..., rows, columns].
  """
  *outer, period = strip.shape
  flat = jnp.broadcast_to(strip[..., None, :], (*outer, rows, period))
  flat = flat.reshape(*outer, rows * period)[..., : rows * (period - 1)]
  return flat.reshape(*outer, rows, period - 1)[..., :columns]


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=['rows'], meta_fields=['behind']
)
@dataclasses.dataclass(frozen=True)
class Window:
  """The biases of any block of queries for the keys around it.

  They are the same for all blocks: the keys are numbered from `behind` before
  the block's first query. Keys before these have the biases of the first row,
  and keys after them those of the last row.

  Attributes:
    rows: [1, H or 1, S, Q], axis 2 the key, with S = behind + Q + ahead.
    behind: how many keys before the block have rows of their own.
  """

  rows: Any
  behind: int

  def number(self, positions: jax.Array, first_query: Any) -> jax.Array:
    """Returns the row of each key, i32[...].

    Args:
      positions: i32[...], of the keys.
      first_query: i32[], the position of the block's first query.
    """
    row = positions - first_query + self.behind
    return jnp.clip(row, 0, self.rows.shape[2] - 1)

  def of_keys(self, positions: jax.Array, first_query: Any) -> jax.Array:
    """Returns the biases of keys, [1 or B, H or 1, K, Q].

    Args:
      positions: i32[K] or i32[B, K].
      first_query: as in `number`.
    """
    number = self.number(positions, first_query)
    if positions.ndim == 1:
      return self.rows[:, :, number]
    return jnp.moveaxis(self.rows[0][:, number], 1, 0)


def four_axes(bias: jax.Array) -> jax.Array:
  """Adds the missing leading axes of an array that broadcasts to the logits."""
  return bias.reshape((1,) * (4 - bias.ndim) + bias.shape)


def repeat_heads(
  bias: jax.Array | DistanceBias | None, times: int
) -> jax.Array | DistanceBias | None:
  """Repeats each head's bias for as many consecutive heads."""

  def repeat(x, axis):
    return x if x.shape[axis] == 1 else jnp.repeat(x, times, axis)

  if isinstance(bias, DistanceBias):
    return bias.map(lambda values: repeat(values, 0))
  return None if bias is None else repeat(four_axes(bias), 1)


def as_array(
  bias: jax.Array | DistanceBias | None, queries: int, keys: int
) -> jax.Array | None:
  """Materialises a DistanceBias for whole rows; other biases stay.

  Returns:
    An array that broadcasts to [B, H, queries, keys], or None.
  """
  if isinstance(bias, DistanceBias):
    return bias.matrix(queries, keys)
  return bias


def of_block(
  bias: jax.Array | DistanceBias | None, first: Any, queries: int, keys: int
) -> jax.Array | None:
  """Materialises a DistanceBias for a block of queries; other biases stay.

  Args:
    bias: a bias.
    first: i32[], the position of the block's first query.
    queries: C.
    keys: N.

  Returns:
    An array that broadcasts to [B, H, C, N], or None.
  """
  if isinstance(bias, DistanceBias):
    return bias.block(first, queries, keys)
  return bias


def of_step(
  bias: jax.Array | DistanceBias | None, position: jax.Array, keys: int
) -> jax.Array | None:
  """Materialises a DistanceBias for one query a row; other biases stay.

  Args:
    bias: a bias.
    position: i32[B], the queries' positions.
    keys: N.

  Returns:
    An array that broadcasts to [B, H, 1, N], or None.
  """
  return bias.step(position, keys) if isinstance(bias, DistanceBias) else bias
