"""The TPU kernel of F at the first query of each block.

It computes the selection scores alone, one product of a head, and their sums
over earlier queries, before attention: from these follows which keys die.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from selective_t5x.attention import kernel_costs
from selective_t5x.attention.tpu import tile as pallas_tile
from selective_t5x.attention.tpu.forward import Inputs
from selective_t5x.attention.tpu.plan import VECTOR_MEMORY, Plan

# The columns of a tile: the wider, the less often queries are read.
_WIDEST = 1024


def column_sums(plan: Plan, inputs: Inputs) -> jax.Array:
  """Returns f32[B, G, T, 1, N], the column sums of S above each row of tiles.

  They are zero where no earlier query can mask the key.

  Args:
    plan: that of a call with selection.
    inputs: those of the call.
  """
  query, key = plan.block.query, _columns(plan)
  blocks, size = plan.query_blocks, plan.selection_size

  def below(i, j):
    # Above the diagonal the first block below it is loaded, once.
    return jnp.maximum(i, lax.div(j * key, np.int32(query)))

  strips = plan.selection_bias

  def strip_index(b, g, j, i):
    number = strips.number(below(i, j), j)
    return 0, g if strips.heads > 1 else 0, number, 0, 0

  specs = (
    pl.BlockSpec(
      (None, None, query, size), lambda b, g, j, i: (b, g, below(i, j), 0)
    ),
    pl.BlockSpec((None, None, key, size), lambda b, g, j, i: (b, g, j, 0)),
    None
    if inputs.start is None
    else pl.BlockSpec(
      (None, None, query, 1), lambda b, g, j, i: (b, 0, below(i, j), 0)
    ),
    None
    if strips is None
    else pl.BlockSpec((None, 1, None, 1, strips.width), strip_index),
  )
  shape = (plan.batch, plan.groups, blocks, 1, plan.length)
  return kernel_costs.counted_call(
    lambda *refs: _kernel(plan, *refs),
    (
      inputs.selection_query,
      inputs.selection_key,
      inputs.start,
      inputs.selection_bias,
    ),
    grid=(plan.batch, plan.groups, plan.length // key, blocks),
    in_specs=specs,
    out_specs=pl.BlockSpec(
      (None, None, None, 1, key), lambda b, g, j, i: (b, g, i, 0, j)
    ),
    out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
    scratch_shapes=(pltpu.VMEM((1, key), jnp.float32),),
    name='selective_attention_sums',
    interpret=plan.interpret,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel', 'arbitrary', 'arbitrary'),
      vmem_limit_bytes=VECTOR_MEMORY,
    ),
  )


def _columns(plan):
  """Returns the width of a tile, a divisor of N; biases have theirs."""
  key = plan.block.key
  if plan.selection_bias is not None:
    return key
  widths = range(key, max(key, _WIDEST) + 1, key)
  return max(width for width in widths if plan.length % width == 0)


def _kernel(plan, selection_query, selection_key, start, bias, out, sums):
  """Goes down a column of tiles."""
  j, i = pl.program_id(2), pl.program_id(3)
  columns = sums.shape[1]

  @pl.when(i == 0)
  def _():
    sums[...] = jnp.zeros_like(sums)

  out[...] = sums[...]

  @pl.when((i + 1) * plan.block.query > j * columns)
  def _():
    shape = (plan.block.query, columns)
    row = i * shape[0] + lax.broadcasted_iota(jnp.int32, shape, 0)
    column = j * columns + lax.broadcasted_iota(jnp.int32, shape, 1)
    scores = pallas_tile.selection_scores(
      plan,
      (i, j),
      selection_query[...],
      selection_key[...],
      None if bias is None else bias[0],
      ((0 if start is None else start[...]) < column) & (column < row),
    )
    sums[...] += jnp.sum(scores, axis=0, keepdims=True)
