"""The computation of the Hopper kernel in one tile of queries and keys.

A tile is 64 queries, the rows of a warp group's matrix products, by 64 keys. It
lies in registers, in the layout of those products' results. Logits and F are in
units of log(2) where they are subtracted from each other.

Pallas' interpreter of these kernels multiplies neither transposed nor register
operands and knows no layouts. `Registers` is all that differs there.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from selective_t5x.attention.fused import FAR, product
from selective_t5x.attention.gpu.plan import Plan
from selective_t5x.attention.gpu.tile import LOG2_E

# The rows and the columns of a tile.
SIDE = 64
# Larger selection scores are cut to this, which float16 holds. The weight of a
# key that is masked by so much is zero.
_LARGEST_SCORE = 6e4
_TILE = (SIDE, SIDE)
_OF_ROWS = plgpu.Layout.WGMMA.reduce(1)
_OF_COLUMNS = plgpu.Layout.WGMMA.reduce(0)


class Registers(NamedTuple):
  """How arrays get into registers and are multiplied.

  Attributes:
    interpret: whether the kernel runs in Pallas' interpreter.
  """

  interpret: bool

  def _in_layout(self, x, layout):
    return x if self.interpret else plgpu.layout_cast(x, layout)

  @staticmethod
  def anew(index) -> jax.Array:
    """Returns i32[], an index that may differ in every round of a loop.

    The compiler else computes all addresses that follow from one that does not
    before the loop, and spills registers to keep them.
    """
    return lax.optimization_barrier(jnp.int32(index))

  def full(self, shape, number) -> jax.Array:
    """Returns f32, an array [SIDE] of rows or a matrix of one number."""
    layout = _OF_ROWS if len(shape) == 1 else plgpu.Layout.WGMMA
    return self._in_layout(jnp.full(shape, number, jnp.float32), layout)

  def of_rows(self, ref) -> jax.Array:
    """Loads [SIDE], a number for each row."""
    return self._in_layout(ref[...], _OF_ROWS)

  def of_columns(self, ref) -> jax.Array:
    """Loads [SIDE], a number for each column, as a tile."""
    x = self._in_layout(ref[...], _OF_COLUMNS)
    return self._in_layout(
      lax.broadcast_in_dim(x, _TILE, [1]), plgpu.Layout.WGMMA
    )

  def positions(self, first, axis: int) -> jax.Array:
    """Returns i32, a tile of `first` plus the row (0) or the column (1)."""
    first = self.anew(first)
    x = lax.broadcasted_iota(jnp.int32, _TILE, axis)
    return self._in_layout(x, plgpu.Layout.WGMMA) + first

  def product(self, a, b, *, transpose_b: bool = False) -> jax.Array:
    """Returns f32, the product of two refs."""
    if self.interpret:
      return product(a[...], b[...], transpose_b=transpose_b)
    columns = b.shape[0 if transpose_b else 1]

    def run(accumulator):
      operand = plgpu.transpose_ref(b, (1, 0)) if transpose_b else b
      plgpu.wgmma(accumulator, a, operand)
      return accumulator[...]

    return pl.run_scoped(run, plgpu.ACC((a.shape[0], columns), jnp.float32))

  def add_products(self, total, *pairs) -> jax.Array:
    """Returns f32, total plus products; each b is a ref, an a may be one."""
    if self.interpret:
      for a, b in pairs:
        total += product(a[...], b[...])
      return total

    def run(accumulator):
      for a, b in pairs:
        plgpu.wgmma(accumulator, a, b)

    return pl.run_state(run)(plgpu.ACC.init(total))


def along_rows(x, columns: int) -> jax.Array:
  """Returns [SIDE] as a matrix, a row of each number."""
  return lax.broadcast_in_dim(x, (SIDE, columns), [0])


class Tile(NamedTuple):
  """A tile's visibility and F.

  Attributes:
    visible: bool; None where every query sees every key.
    masking: f32, F.
    taken_off: f32, subtracted from the logits in units of log(2): F where
      visible, else FAR.
  """

  visible: jax.Array | None
  masking: jax.Array
  taken_off: jax.Array


class Place(NamedTuple):
  """Where a tile lies.

  Attributes:
    row: i32[], its first query.
    column: i32[], its first key.
    start: a ref of i32[SIDE], where the segment of each query starts; None for
      0.
  """

  row: jax.Array
  column: jax.Array
  start: Any


def may_mask(registers: Registers, place: Place) -> jax.Array:
  """Returns bool, which keys of a tile a query's score masks."""
  row, column, first = _positions(registers, place)
  return (first < column) & (column < row)


def visible(registers: Registers, place: Place) -> jax.Array:
  """Returns bool, which keys of a tile a query sees."""
  row, column, first = _positions(registers, place)
  return (first <= column) & (column <= row)


def _positions(registers, place):
  first: Any = 0
  if place.start is not None:
    first = along_rows(registers.of_rows(place.start), SIDE)
  return (
    registers.positions(place.row, 0),
    registers.positions(place.column, 1),
    first,
  )


def scores(plan: Plan, logits, where) -> jax.Array:
  """Returns S, f32, of the products of selection's queries and keys.

  Args:
    plan: the plan of the call.
    logits: f32.
    where: the result of `may_mask`; None where every score may mask.
  """
  x = jnp.maximum(plan.selection_scale * logits, 0.0)
  x = jnp.minimum(x, _LARGEST_SCORE)
  return x if where is None else jnp.where(where, x, 0.0)


def masking(registers: Registers, scores, before, lower, halves) -> jax.Array:
  """Returns F, f32: `before` plus the sum of the scores in the rows above.

  A product with a triangle of ones, since a warp group has no scan. The scores
  are a sum of two float16 numbers, 22 of float32's 24 bits, and the matrix
  units add in float32.

  Args:
    registers: how arrays are multiplied.
    scores: f32.
    before: a ref of f32[SIDE], the column sums above the tile.
    lower: a ref of f16, ones below the diagonal.
    halves: a ref of f16[2, SIDE, SIDE] of this warp group alone.
  """
  high = scores.astype(jnp.float16)
  halves[0] = high
  halves[1] = (scores - high.astype(jnp.float32)).astype(jnp.float16)
  plgpu.commit_smem()
  return registers.add_products(
    registers.of_columns(before),
    (lower, halves.at[0]),
    (lower, halves.at[1]),
  )


def make_tile(masking, visible) -> Tile:
  """Returns the tile of F and its visible keys."""
  taken_off = LOG2_E * masking
  if visible is not None:
    taken_off = jnp.where(visible, taken_off, FAR)
  return Tile(visible, masking, taken_off)


def visible_tokens(plan: Plan, tile: Tile) -> jax.Array:
  """Returns the part of M from this tile, f32[SIDE]."""
  seen = jnp.maximum(1.0 - tile.masking / plan.memory_tau, 0.0)
  if tile.visible is not None:
    seen = jnp.where(tile.visible, seen, 0.0)
  return jnp.sum(seen, axis=1)


class Head(NamedTuple):
  """The running softmax of a head.

  Attributes:
    total: f32[SIDE, D], the weighted sum of the values so far.
    top: f32[SIDE], the largest logit so far.
    weight: f32[SIDE], the sum of the exponentials so far.
  """

  total: jax.Array
  top: jax.Array
  weight: jax.Array

  @staticmethod
  def empty(registers: Registers, size: int) -> 'Head':
    """Returns the state before the first tile."""
    return Head(
      registers.full((SIDE, size), 0.0),
      registers.full((SIDE,), -FAR),
      registers.full((SIDE,), 0.0),
    )

  def weights(self, plan: Plan, tile: Tile, logits) -> tuple['Head', jax.Array]:
    """Takes a tile's logits into the softmax.

    Args:
      plan: the plan of the call.
      tile: the result of `make_tile`.
      logits: f32, the products of queries and keys.

    Returns:
      The state, whose total lacks this tile, and the weights of its values.
    """
    logits = (plan.scale * LOG2_E) * logits - tile.taken_off
    top = jnp.maximum(self.top, jnp.max(logits, axis=1))
    shrink = jnp.exp2(self.top - top)
    weights = jnp.exp2(logits - along_rows(top, SIDE))
    state = Head(
      self.total * along_rows(shrink, self.total.shape[1]),
      top,
      shrink * self.weight + jnp.sum(weights, axis=1),
    )
    return state, weights.astype(plan.dtype)

  def output(self) -> jax.Array:
    """Returns f32[SIDE, D], the average of the values."""
    return self.total / along_rows(self.weight, self.total.shape[1])

  def log_sum(self) -> jax.Array:
    """Returns f32[SIDE], the log2 of the sum of the exponentials."""
    return self.top + LOG2_E * jnp.log(self.weight)
