"""How the TPU kernels cut their operands into blocks where keys die.

Which tiles a kernel computes, and in which order, is in tables (`reads`) that
lie in scalar memory before the kernel starts. An index map that returns the
same block again moves nothing. So a grid index past the last tile of a row
costs no bytes, nor does a tile that is in no table.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from selective_t5x.attention import kernel_costs
from selective_t5x.attention.tpu.blocks import QUERY, Blocks, Step
from selective_t5x.attention.tpu.reads import Table, place_of


@dataclasses.dataclass(frozen=True)
class LiveBlocks(Blocks):
  """The grid and the block specs of a kernel that reads tables.

  Attributes:
    table: for outer = QUERY, the key tiles of each block of queries, coded as
      in `reads.place_of`; for outer = KEY the query blocks of each tile of
      keys, from the last up.
    counted: a table like it, in NumPy, at which the kernel's cost is counted.
    listed: for outer = KEY, whether the keys are listed ones.
  """

  table: Table
  counted: Table
  listed: bool = False

  @property
  def grid(self) -> tuple[int, int, int, int]:
    """See `Blocks`."""
    return (self.plan.batch, self.plan.programs, *self.table.places.shape[2:])

  def step(self, table: Table) -> Step:
    """Returns the step at the grid indices of the program that runs.

    Args:
      table: flat references in scalar memory.
    """
    b, p, x, y = (pl.program_id(axis) for axis in range(4))
    i, j, _, of_list = self._place(b, p, x, y, table)
    count = table.counts[self._line(b, p) * self.grid[2] + x]
    if self.outer == QUERY:
      listed = of_list == 1 if self.plan.lists else None
    else:
      listed = np.bool_(True) if self.listed else None
    runs = y < count
    return Step(i, j, runs, (y == 0) & runs, y == count - 1, listed)

  def _line(self, b, p):
    """Returns the number of the row's and group's lines in the tables."""
    group = lax.div(p, np.int32(self.plan.programs_a_group))
    return b * self.plan.groups + group

  def _place(self, b, p, x, y, table):
    """Returns query block, key block, listed block, and whether it is that."""
    line = self._line(b, p)
    # Lines without tiles are the last ones, and keep the last place before: a
    # block that was written and left must not come back.
    last = jnp.maximum(table.used[line] - 1, 0)
    y = jnp.where(x > last, self.grid[3] - 1, y)
    x = jnp.minimum(x, last)
    at = line * self.grid[2] + x
    y = jnp.minimum(y, jnp.maximum(table.counts[at] - 1, 0))
    place = table.places[at * self.grid[3] + y]
    if self.outer != QUERY:
      return place, x, x, None
    return (x, *place_of(place, self.plan.key_blocks))

  def _read(self, b, p, x, y, table):
    return self._place(b, p, x, y, table)[:3]

  _written = _read

  def _call(self, kernel, operands, grid_spec, **spec):
    def flat(table):
      return Table(*(x.reshape(-1) for x in table))

    return kernel_costs.counted_call(
      lambda table, *refs: kernel(self.plan, self.step(table), *refs),
      (flat(self.table), *operands),
      scalars=[np.asarray(x) for x in flat(self.counted)],
      grid_spec=pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1, **grid_spec
      ),
      **spec,
    )
