"""How the TPU kernels cut their operands into blocks.

The grid of a kernel is (B, P, outer, inner): batch, programs (groups of heads),
and the two axes of the tiles. Shapes are those of `plan`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from selective_t5x.attention import kernel_costs
from selective_t5x.attention.tpu.distances import Strips
from selective_t5x.attention.tpu.plan import VECTOR_MEMORY, Plan

# Which axis of a tile an operand follows; LISTED is that of listed keys.
QUERY, KEY, LISTED = 0, 1, 2


class Step(NamedTuple):
  """What a kernel does at one index of its grid.

  Attributes:
    i: i32[], the query block.
    j: i32[], the key block.
    runs: bool[], whether the tile of both is computed.
    first: bool[], whether the outer block begins.
    last: bool[], whether the outer block ends.
    listed: bool[], whether the keys are listed ones; None where none are.
  """

  i: Any
  j: Any
  runs: Any
  first: Any
  last: Any
  listed: Any = None


@dataclasses.dataclass(frozen=True)
class Blocks:
  """The grid and the block specs of one kernel that reads all keys.

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

  def step(self, *_) -> Step:
    """Returns the step at the grid indices of the program that runs."""
    plan = self.plan
    i, j = self._tile(pl.program_id(2), pl.program_id(3))
    if self.outer == QUERY:
      ends = j == 0, j == plan.last_key_block(i)
    else:
      ends = i == plan.query_blocks - 1, i == plan.first_query_block(j)
    return Step(i, j, plan.runs(i, j), *ends)

  def _tile(self, x, y):
    """Returns the query block and key block at grid indices outer, inner."""
    return (
      (x, y) if self.outer == QUERY else (self.plan.query_blocks - 1 - y, x)
    )

  def _written(self, b, p, x, y, *_):
    # Past the diagonal the last block stays, so nothing is written.
    i, j = self._tile(x, y)
    if self.outer == QUERY:
      return i, jnp.minimum(j, self.plan.last_key_block(i))
    return jnp.maximum(i, self.plan.first_query_block(j)), j

  def _read(self, b, p, x, y, *_):
    # Past the diagonal nothing is computed, so the first block of the next row
    # (or column) can be loaded.
    i, j = self._tile(x, y)
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

    def index(b, p, *place):
      i, j = self._read(b, p, *place)[:2]
      return 0, p // shared, strips.number(i, j), 0, 0

    return pl.BlockSpec((None, size, None, 1, strips.width), index)

  def strips(self, strips: Strips, heads: int) -> pl.BlockSpec:
    """Returns the spec of [B, P, S, heads, W]: all of a program."""
    return pl.BlockSpec(
      (None, None, strips.count, heads, strips.width),
      lambda b, p, *_: (b, p, 0, 0, 0),
    )

  def _spec(self, heads, axis, columns, shared=1):
    block = self.plan.block
    size = (block.query, block.key, block.key)[axis]

    def index(b, p, *place):
      return b, p // shared, self._read(b, p, *place)[axis], 0

    return pl.BlockSpec((None, heads, size, columns), index)

  def sums(self, axis: int = KEY, shared: int = 1) -> pl.BlockSpec:
    """Returns the spec of [B, P, N / query block, 1, N]: [1, block] a tile.

    Args:
      axis: KEY or LISTED.
      shared: the number of consecutive programs that read the same numbers.
    """

    def index(b, p, *place):
      tile = self._written(b, p, *place)
      return b, p // shared, tile[QUERY], 0, tile[axis]

    return pl.BlockSpec((None, None, None, 1, self.plan.block.key), index)

  def columns(self, axis: int = KEY, shared: int = 1) -> pl.BlockSpec:
    """Returns the spec of [B, P, 1, N]: [1, block], see `sums`."""

    def index(b, p, *place):
      return b, p // shared, 0, self._written(b, p, *place)[axis]

    return pl.BlockSpec((None, None, 1, self.plan.block.key), index)

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
      kernel: is called with plan, step, and the refs of each operand, of the
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
    (result,) = self._call(
      kernel,
      operands,
      dict(
        grid=self.grid,
        in_specs=in_specs,
        out_specs=(specs,),
        scratch_shapes=(scratch,),
      ),
      out_shape=(shapes,),
      name=f'{"selective" if self.plan.selects else "plain"}_{name}',
      interpret=self.plan.interpret,
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=('parallel', 'parallel', 'arbitrary', 'arbitrary'),
        vmem_limit_bytes=VECTOR_MEMORY,
      ),
    )
    return result

  def _call(self, kernel, operands, grid_spec, **spec):
    return kernel_costs.counted_call(
      lambda *refs: kernel(self.plan, self.step(), *refs),
      operands,
      **grid_spec,
      **spec,
    )
