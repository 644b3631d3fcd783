"""The gradient of T5's biases by distance, in the order of the tiles.

The bias of a distance is added to a diagonal of the logits, and there are
a few tiles in a row of tiles whose distances differ. They lie at
the same distances in all rows of tiles. So a program stands for one of these
tiles, goes down the rows of tiles, and adds the gradients of the logits up in
registers: no program waits for another, and no addition is atomic. The
diagonals are summed at the end, outside the kernel.

All keys from `behind` on share one number. The softmax of a row does not change
where all of its logits shift, so the gradients of a head's biases sum to zero:
the far one is what the near ones lack. Selection has no softmax; the kernel for
queries adds its far gradients up. So it does with those of earlier keys where
queries see later ones, too, and the far later keys are what is left.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from selective_t5x.attention.distance_bias import toeplitz
from selective_t5x.attention.gpu import recompute
from selective_t5x.attention.gpu import tile as gpu_tile
from selective_t5x.attention.gpu.blocks import Blocks, Inputs
from selective_t5x.attention.gpu.plan import Plan
from selective_t5x.attention.gpu.recompute import Saved
from selective_t5x.attention.gpu.windows import with_windows

# About how many queries a program goes down. Rows that are longer have more
# programs, and as many more windows.
_ROWS = 2048


class Windows(NamedTuple):
  """Gradients of logits, added up over rows of tiles.

  W is the number of keys of a window, `Window.keys`, and C the number of parts
  of a row. These windows are smaller than those that the kernels read.

  Attributes:
    heads: f32[B, C, H, Q, W].
    selection: f32[B, C, P, Q, W], the share of each program; None without
      selection.
  """

  heads: Any
  selection: Any


class Window(NamedTuple):
  """The keys whose distances from a block of queries differ.

  Attributes:
    tiles: the number of tiles.
    size: K, the keys of a tile; it divides Q.
    before: how many of the keys lie before the first query.
  """

  tiles: int
  size: int
  before: int

  @property
  def keys(self) -> int:
    """W, the number of keys."""
    return self.tiles * self.size


def window_of(plan: Plan) -> Window:
  """Returns the window of a call with biases."""
  query = plan.block.query
  size = min(query, plan.block.backward_key)
  before = pl.cdiv(max(plan.behind - 1, 0), size)
  after = pl.cdiv(query + max(plan.ahead - 1, 0), size)
  return Window(before + after, size, before * size)


def gradients(plan: Plan, inputs: Inputs, saved: Saved, ends, far):
  """Returns the gradients of the biases.

  Args:
    plan: the plan of the call.
    inputs: those of the forward kernel.
    saved: what is saved.
    ends: see `live.Live`; None where all keys are read.
    far: see backward.QueryGrads.

  Returns:
    f32[H, R] for the heads; f32[G, R] for selection, None without it.
  """
  windows = _windows(plan, inputs, saved, ends)
  near = _by_distance(plan, jnp.sum(windows.heads, axis=(0, 1)))
  rest = -jnp.sum(near, axis=-1, keepdims=True)
  if plan.full is not None:
    behind = jnp.sum(far, axis=(0, 3)).reshape(-1, 1)
    return jnp.concatenate([rest - behind, near, behind], axis=-1), None
  of_heads = jnp.concatenate([near, rest], axis=-1)
  if not plan.selects:
    return of_heads, None
  total = jnp.sum(windows.selection, axis=(0, 1))
  near = _by_distance(plan, _over_programs(plan, total))
  rest = _over_programs(plan, jnp.sum(far, axis=(0, 2, 3)))[:, None]
  return of_heads, jnp.concatenate([near, rest], axis=-1)


def _over_programs(plan: Plan, shares):
  """Sums the shares [P, ...] of each group's programs: [G, ...]."""
  return jnp.sum(shares.reshape(plan.groups, -1, *shares.shape[1:]), axis=1)


def _by_distance(plan: Plan, window):
  """Sums the diagonals of f32[H, Q, W]: f32[H, .], from the last near key."""
  heads, queries, keys = window.shape
  strip = jax.ShapeDtypeStruct((heads, queries + keys), jnp.float32)
  transposed = jax.linear_transpose(lambda x: toeplitz(x, queries, keys), strip)
  # Entry c of a strip is the bias of the keys c after the window's first one
  # for the first query.
  (sums,) = transposed(window)
  before = window_of(plan).before
  after = max(plan.ahead, 1)
  return sums[:, before - plan.behind + 1 : before + after][:, ::-1]


def _windows(plan: Plan, inputs: Inputs, saved: Saved, ends) -> Windows:
  blocks = Blocks(plan, plan.block.biases, plan.backward_heads)
  window = window_of(plan)
  parts = pl.cdiv(plan.query_blocks, _blocks_of_a_part(plan))

  def share(number, of_a_program):
    shape = (plan.batch, parts, number, plan.block.query, window.keys)
    spec = pl.BlockSpec(
      (None, None, of_a_program, *shape[3:]),
      lambda x, b, p: (b, x // window.tiles, p, 0, 0),
    )
    return spec, jax.ShapeDtypeStruct(shape, jnp.float32)

  return blocks.call(
    _kernel,
    (with_windows(plan, inputs, 0), saved, ends),
    name='attention_biases',
    blocks=parts * window.tiles,
    in_specs=(
      blocks.inputs(0),
      recompute.saved_specs(blocks, saved),
      None if ends is None else blocks.of_group(plan.length),
    ),
    out=Windows(
      share(plan.heads, blocks.heads),
      share(blocks.programs, None) if plan.selects else None,
    ),
  )


def _blocks_of_a_part(plan: Plan) -> int:
  return pl.cdiv(_ROWS, plan.block.query)


def _kernel(
  plan: Plan, heads: int, inputs: Inputs, saved: Saved, ends, windows: Windows
):
  """Goes down the rows of tiles, at one tile of the window."""
  window, blocks = window_of(plan), _blocks_of_a_part(plan)
  part, number = (
    pl.program_id(0) // window.tiles,
    pl.program_id(0) % window.tiles,
  )
  # The keys of the first rows of tiles may lie before the row.
  lacking = jnp.maximum(window.before - number * window.size, 0)
  first = jnp.maximum(part * blocks, pl.cdiv(lacking, plan.block.query))
  end = jnp.minimum((part + 1) * blocks, plan.query_blocks)
  if plan.full is not None:
    # And those of the last ones after it.
    room = plan.keys + window.before - (number + 1) * window.size
    room = jnp.maximum(room + plan.block.query, 0) // plan.block.query
    end = jnp.minimum(end, room)

  def add(i, carry):
    of_block = recompute.of_rows(plan, heads, inputs, saved, i)
    column = i * plan.block.query + number * window.size - window.before
    columns = gpu_tile.Columns.in_order(column, window.size)
    if ends is not None:
      columns = columns.where(i < ends[columns.slots], plan.length)
    select = None
    if plan.selects:
      select = (of_block.selecting, inputs.selection_key[columns.slots, :])
    block = recompute.block_at(
      plan,
      inputs,
      saved,
      select,
      i=i,
      columns=columns,
      query_axis=0,
      near=True,
    )
    logit_grads = recompute.logit_gradients(plan, inputs, of_block, block)
    sums, of_selection = carry
    if plan.selects:
      selection, _ = recompute.selection_gradient(
        plan,
        block,
        saved,
        of_block.rows,
        recompute.added_up(logit_grads),
        saved.later[i, columns.slots],
      )
      of_selection += selection
    sums = tuple(x + y for x, y in zip(sums, logit_grads, strict=True))
    return sums, of_selection

  zeros = jnp.zeros((plan.block.query, window.size), jnp.float32)
  carry = ((zeros,) * heads, zeros if plan.selects else None)
  sums, of_selection = lax.fori_loop(first, end, add, carry)
  columns = pl.ds(number * window.size, window.size)
  for head, x in enumerate(sums):
    windows.heads[head, :, columns] = x
  if plan.selects:
    windows.selection[:, columns] = of_selection
