"""Biases by distance in the tiles of the TPU kernels.

The biases of a tile of Q queries and K keys are a Toeplitz matrix: Q + K - 1
numbers, one for each diagonal. All tiles with the same distance between their
first query and their first key have the same ones, and tiles so far from the
diagonal that all their distances share one bias are all alike. So the kernels
read *strips*, W numbers for each kind of tile, instead of N x N numbers. A
strip becomes a tile by doubling the rows, each half a rotation of the other;
the gradient takes the way back, by adding one half of the rows to the other.
Either takes O(Q W) operations, and rotations by constants alone: those by a
number that differs from row to row do not compile for every TPU.

Shapes: H heads, S strips, W lanes of a strip, behind + 1 biases a head. Source:
ours.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from selective_t5x.attention.distance_bias import DistanceBias

_LANES = 128  # Lanes of a vector register, which hold the last axis.
_SUBLANES = 8  # Rows of a vector register.


@dataclasses.dataclass(frozen=True)
class Strips:
  """Which strips there are, and which of them a tile reads.

  Attributes:
    heads: H, or 1 where all heads have the same biases.
    behind: the largest distance of a query from a key with a bias of its own.
    query: Q, rows of a tile.
    key: K, columns of a tile.
    length: N, whole tiles.
  """

  heads: int
  behind: int
  query: int
  key: int
  length: int

  @property
  def unit(self) -> int:
    """What divides the distance between the first tokens of a tile."""
    return math.gcd(self.query, self.key)

  @property
  def width(self) -> int:
    """W, whole registers of lanes."""
    return pl.cdiv(self.query + self.key, _LANES) * _LANES

  @property
  def nearest(self) -> int:
    """The least distance between the first tokens of a tile, in units."""
    return 1 - self.query // self.unit

  @property
  def farthest(self) -> int:
    """The largest such distance with a strip of its own or for all others."""
    last = (self.length - self.query) // self.unit
    return min(last, pl.cdiv(self.behind + self.key - 1, self.unit))

  @property
  def count(self) -> int:
    """S, the number of strips."""
    return self.farthest - self.nearest + 1

  def number(self, i, j):
    """Returns the strip of query block i and key block j; 0 is the farthest."""
    apart = i * (self.query // self.unit) - j * (self.key // self.unit)
    return self.farthest - jnp.clip(apart, self.nearest, self.farthest)

  def far(self, i, j):
    """Whether all distances in a tile have the bias of the largest one."""
    return i * self.query - j * self.key >= self.behind + self.key - 1

  def of_values(self, bias: DistanceBias) -> jax.Array:
    """Returns the strips, f32[1, H or 1, S, 1, W].

    Lane u of strip s has the bias of the keys that are as far ahead of a query
    as `unit` * (s - farthest) + u - Q; a distance above 0, which no query sees,
    has that of 0.

    Args:
      bias: its `behind` and heads are those of these strips, its `ahead` is 0.
    """
    first = self.unit * self.farthest + self.query
    length = self.unit * (self.count - 1) + self.width
    line = jnp.pad(
      bias.values.astype(jnp.float32),
      ((0, 0), (first - self.behind, length - first - 1)),
      'edge',
    )
    starts = range(0, self.unit * self.count, self.unit)
    strips = [line[:, at : at + self.width] for at in starts]
    return jnp.stack(strips, axis=1)[None, :, :, None]

  def tile(self, strip: jax.Array, far: jax.Array) -> jax.Array:
    """Returns the biases of a tile, f32[Q, K].

    Args:
      strip: f32[1, W], that of the tile.
      far: bool[], whether the tile is far.
    """

    def same():
      return jnp.broadcast_to(strip[:, : self.key], (self.query, self.key))

    def own():
      # Column c of row r is lane c - r + Q.
      return diagonals(strip, self.query)[:, : self.key]

    return jax.lax.cond(far, same, own)

  def gradient(self, grad: jax.Array, far: jax.Array) -> jax.Array:
    """Returns the gradient of a tile's strip, f32[1, W].

    Of a far tile, whose lanes have one bias, only the sum of all lanes counts.

    Args:
      grad: f32[Q, K], the gradient of the tile's biases.
      far: bool[], whether the tile is far.
    """
    rest = jnp.zeros((1, self.width - self.key), jnp.float32)

    def same():
      total = jnp.sum(grad, axis=0, keepdims=True)
      return jnp.concatenate([total, rest], axis=1)

    def own():
      right = jnp.broadcast_to(rest, (self.query, rest.shape[1]))
      return diagonal_sums(jnp.concatenate([grad, right], axis=1))

    return jax.lax.cond(far, same, own)


def diagonals(strip: jax.Array, rows: int) -> jax.Array:
  """Returns rows of a strip, each moved left by the rows from it to the end.

  Args:
    strip: f32[1, W].
    rows: Q, a multiple of 8, and below W.

  Returns:
    f32[Q, W].
  """
  width = strip.shape[1]
  shape = (_SUBLANES, width)
  x = jnp.broadcast_to(strip, shape)
  below = _SUBLANES - 1 - jax.lax.broadcasted_iota(jnp.int32, shape, 0)
  x = pltpu.roll(x, width - 1, 1)
  for bit in (1, 2, 4):
    x = jnp.where(below & bit != 0, pltpu.roll(x, width - bit, 1), x)
  for size, parts in _growth(rows):
    moved = [pltpu.roll(x, width - n * size, 1) for n in range(1, parts)]
    x = jnp.concatenate([*reversed(moved), x], axis=0)
  return x


def _growth(rows: int) -> list[tuple[int, int]]:
  """Returns how 8 rows become Q: pairs of a number of rows and its factor."""
  doublings = 0
  while rows % (_SUBLANES << (doublings + 1)) == 0:
    doublings += 1
  factors = [rows // (_SUBLANES << doublings), *[2] * doublings]
  steps = []
  size = _SUBLANES
  for factor in factors:
    steps.append((size, factor))
    size *= factor
  return steps


def diagonal_sums(x: jax.Array) -> jax.Array:
  """Sums the rows, each moved right by the number of rows from it to the end.

  It is the transpose of `diagonals`: the upper half of the rows is moved and
  added to the lower half until one row is left.

  Args:
    x: f32[Q, W], Q a multiple of 8. The last Q lanes are zero.

  Returns:
    f32[1, W].
  """
  for rows, parts in reversed(_growth(x.shape[0])):
    chunks = [x[at * rows : (at + 1) * rows] for at in range(parts)]
    x = chunks[-1]
    for number, chunk in enumerate(reversed(chunks[:-1]), 1):
      x += pltpu.roll(chunk, number * rows, 1)
  for rows in (4, 2, 1):
    # The rows of one register: the lower ones come up to the upper ones.
    x = pltpu.roll(x, rows, 1) + pltpu.roll(x, _SUBLANES - rows, 0)
  return pltpu.roll(x, 1, 1)[:1]
