"""How the TPU kernels cut their operands into blocks.

The grid of a kernel is (B, P, outer, inner): batch, programs (groups of heads),
and the two axes of the tiles. Shapes are those of `plan`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from selective_t5x.attention import kernel_costs
from selective_t5x.attention.tpu.distances import Strips
from selective_t5x.attention.tpu.plan import VECTOR_MEMORY, Plan

# Which axis of a tile an operand follows.
QUERY, KEY = 0, 1


@dataclasses.dataclass(frozen=True)
class Blocks:
  """The grid and the block specs of one kernel.

  Attributes:
    plan: the plan of the call.
    outer: QUERY runs tiles row by row, from the left to the diagonal; KEY runs
      them column by column, from the last row up to the diagonal.
  """

  plan: Plan
  outer: int

  @property
  def grid(self) -> tuple[int, int, int, int]:
    """The grid of the kernel; its last two axes run in order."""
    plan = self.plan
    tiles = (plan.query_blocks, plan.key_blocks)
    return (plan.batch, plan.programs, tiles[self.outer], tiles[1 - self.outer])

  def tile(self, x, y):
    """Returns the query block and key block at grid indices outer, inner."""
    return (
      (x, y) if self.outer == QUERY else (self.plan.query_blocks - 1 - y, x)
    )

  def _written(self, x, y):
    # Past the diagonal the last block stays, so nothing is written.
    i, j = self.tile(x, y)
    if self.outer == QUERY:
      return i, jnp.minimum(j, self.plan.last_key_block(i))
    return jnp.maximum(i, self.plan.first_query_block(j)), j

  def _read(self, x, y):
    # Past the diagonal nothing is computed, so the first block of the next row
    # (or column) can be loaded.
    i, j = self.tile(x, y)
    runs = self.plan.runs(i, j)
    if self.outer == QUERY:
      return i, jnp.where(runs, j, 0)
    return jnp.where(runs, i, self.plan.query_blocks - 1), j

  def heads(self, axis: int) -> pl.BlockSpec:
    """Returns the spec of [B, H, N, D]: [heads of a program, block, D]."""
    return self._spec(self.plan.block.heads, axis, self.plan.size)

  def selection(self, axis: int) -> pl.BlockSpec:
    """Returns the spec of [B, G, N, E]: [block, E]."""
    shared = self.plan.programs_a_group
    return self._spec(None, axis, self.plan.selection_size, shared)

  def program(self, axis: int, columns: int) -> pl.BlockSpec:
    """Returns the spec of [B, P, N, columns], one part a program."""
    return self._spec(None, axis, columns)

  def row(self, axis: int) -> pl.BlockSpec:
    """Returns the spec of [B, 1, N, 1], shared by all programs: [block, 1]."""
    return self._spec(None, axis, 1, self.plan.programs)

  def strip(self, strips: Strips) -> pl.BlockSpec:
    """Returns the spec of f32[1, H or G or 1, S, 1, W]: [heads, 1, W] a tile.

    The block has the heads of a program, their selection head, or the one head
    that all share.
    """
    plan = self.plan
    size = plan.block.heads if strips.heads == plan.heads else 1
    shared = plan.programs // (strips.heads // size)

    def index(b, p, x, y):
      return 0, p // shared, strips.number(*self._read(x, y)), 0, 0

    return pl.BlockSpec((None, size, None, 1, strips.width), index)

  def strips(self, strips: Strips, heads: int) -> pl.BlockSpec:
    """Returns the spec of [B, P, S, heads, W]: all of a program."""
    return pl.BlockSpec(
      (None, None, strips.count, heads, strips.width),
      lambda b, p, x, y: (b, p, 0, 0, 0),
    )

  def _spec(self, heads, axis, columns, shared=1):
    size = (self.plan.block.query, self.plan.block.key)[axis]
    return pl.BlockSpec(
      (None, heads, size, columns),
      lambda b, p, x, y: (b, p // shared, self._read(x, y)[axis], 0),
    )

  def sums(self) -> pl.BlockSpec:
    """Returns the spec of [B, P, N / query block, 1, N]: [1, block] a tile."""

    def index(b, p, x, y):
      i, j = self._written(x, y)
      return b, p, i, 0, j

    return pl.BlockSpec((None, None, None, 1, self.plan.block.key), index)

  def limits(self) -> pl.BlockSpec:
    """Returns the spec of [B, G, N / query block, 1, N]: [1, block] a tile."""
    shared = self.plan.programs_a_group

    def index(b, p, x, y):
      i, j = self._written(x, y)
      return b, p // shared, i, 0, j

    return pl.BlockSpec((None, None, None, 1, self.plan.block.key), index)

  def call(
    self,
    kernel: Callable,
    operands: tuple,
    *,
    name: str,
    in_specs: tuple,
    out: Any,
    scratch: Any,
  ) -> Any:
    """Runs a kernel over the grid.

    Args:
      kernel: is called with plan, blocks, and the refs of each operand, of the
        result and of the scratch. Each is a tree; None is an absent array.
      operands: trees of arrays.
      name: the kernel's name in profiles, after 'selective_' or 'plain_'.
      in_specs: a tree of block specs for each operand.
      out: a tree of pairs, the block spec and the `jax.ShapeDtypeStruct` of a
        result, or None.
      scratch: a tree of vector memory.

    Returns:
      The results, a tree like `out`.
    """
    specs, shapes = (
      type(out)(*(None if x is None else x[part] for x in out))
      for part in (0, 1)
    )
    (result,) = kernel_costs.counted_call(
      lambda *refs: kernel(self.plan, self, *refs),
      operands,
      grid=self.grid,
      in_specs=in_specs,
      out_specs=(specs,),
      out_shape=(shapes,),
      scratch_shapes=(scratch,),
      name=f'{"selective" if self.plan.selects else "plain"}_{name}',
      interpret=self.plan.interpret,
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=('parallel', 'parallel', 'arbitrary', 'arbitrary'),
        vmem_limit_bytes=VECTOR_MEMORY,
      ),
    )
    return result
