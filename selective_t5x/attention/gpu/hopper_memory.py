"""The memory of the Hopper kernel: arrays, buffers and barriers."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from selective_t5x.attention.gpu.hopper_tile import SIDE
from selective_t5x.attention.gpu.plan import Plan

# The warp groups that compute; one more loads.
CONSUMERS = 2
# Keys and values of so many heads' tiles are in flight or in use, by the size
# of a head: what fits into 227 KiB.
STAGES = {64: 4, 128: 2}


class Operands(NamedTuple):
  """The arrays in the GPU's main memory; shapes are those of `Inputs`.

  Attributes:
    query: see `Inputs`.
    key: see `Inputs`.
    value: see `Inputs`.
    selection_query: see `Inputs`.
    selection_key: see `Inputs`.
    start: see `Inputs`.
    sums: `forward.Sums.sums`.
    lower: f16[SIDE, SIDE], ones below the diagonal.
  """

  query: Any
  key: Any
  value: Any
  selection_query: Any
  selection_key: Any
  start: Any
  sums: Any
  lower: Any


class Shared(NamedTuple):
  """The shared memory of a program, and its barriers.

  Attributes:
    query: [heads, consumers, SIDE, D]; at the end the output.
    selection_query: [consumers, SIDE, E].
    start: i32[consumers, SIDE]; None for whole rows.
    lower: f16[1, SIDE, SIDE].
    halves: f16[consumers, 2, SIDE, SIDE], see `hopper_tile.running_sum`.
    selection_key: [SIDE, E].
    before: f32[consumers, SIDE], the column sums.
    key: [stages, SIDE, D].
    value: [stages, SIDE, D].
    lse: f32[heads, consumers, SIDE].
    memory: f32[consumers, SIDE]; None without M.
    queries_ready: all that stays is loaded.
    selection_ready: selection_key and before are loaded.
    selection_free: both consumers have read them.
    ready: key and value are loaded, one for each stage.
    free: both consumers have read them, likewise.
  """

  query: Any
  selection_query: Any
  start: Any
  lower: Any
  halves: Any
  selection_key: Any
  before: Any
  key: Any
  value: Any
  lse: Any
  memory: Any
  queries_ready: Any
  selection_ready: Any
  selection_free: Any
  ready: Any
  free: Any


def shared_memory(plan: Plan) -> Shared:
  """Returns the types of a program's shared memory."""
  heads, stages = plan.forward_heads, STAGES[plan.size]

  def matrices(*shape, dtype=plan.dtype):
    # The order in which TMA writes rows and wgmma reads them: 128 bytes.
    order = plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)
    return plgpu.SMEM(shape, dtype, transforms=order)

  def numbers(*shape, dtype=jnp.float32):
    return plgpu.SMEM((*shape, CONSUMERS, SIDE), dtype)

  # A copy of every array arrives.
  copies = 1 + CONSUMERS * (heads + 1 + plan.packed)
  return Shared(
    query=matrices(heads, CONSUMERS, SIDE, plan.size),
    selection_query=matrices(CONSUMERS, SIDE, plan.selection_size),
    start=numbers(dtype=jnp.int32) if plan.packed else None,
    lower=matrices(1, SIDE, SIDE, dtype=jnp.float16),
    halves=matrices(CONSUMERS, 2, SIDE, SIDE, dtype=jnp.float16),
    selection_key=matrices(SIDE, plan.selection_size),
    before=numbers(),
    key=matrices(stages, SIDE, plan.size),
    value=matrices(stages, SIDE, plan.size),
    lse=numbers(heads),
    memory=None if plan.memory_tau is None else numbers(),
    queries_ready=plgpu.Barrier(num_arrivals=copies),
    selection_ready=plgpu.Barrier(num_arrivals=2),
    selection_free=plgpu.Barrier(num_arrivals=CONSUMERS),
    ready=plgpu.Barrier(num_arrivals=2, num_barriers=stages),
    free=plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=stages),
  )
