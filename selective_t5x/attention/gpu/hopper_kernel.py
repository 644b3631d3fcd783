"""The forward kernel for Hopper GPUs, in Pallas' Mosaic GPU.

It does what `forward` does, with Hopper's own means: a warp group of a program
loads keys and values by TMA into shared memory, two warp groups multiply from
there with wgmma, 64 queries each. All heads of a program share a tile of F. The
column sums and the backward pass are those of the Triton kernels, which read
the log-sum-exp that this kernel saves.

Source: arXiv 2410.02703, section 3, for F; Shah et al., arXiv 2407.08608, for
warp groups of different roles.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from selective_t5x.attention.gpu import hopper_tile
from selective_t5x.attention.gpu.blocks import Inputs
from selective_t5x.attention.gpu.forward import Outputs
from selective_t5x.attention.gpu.hopper_memory import (
  CONSUMERS,
  STAGES,
  Operands,
  Shared,
  shared_memory,
)
from selective_t5x.attention.gpu.hopper_tile import SIDE, Head, Registers
from selective_t5x.attention.gpu.plan import Plan

# The queries of a program.
QUERIES = CONSUMERS * SIDE
# Registers of a thread: 65,536 for 128 threads of each of three warp groups.
_CONSUMER_REGISTERS, _PRODUCER_REGISTERS = 240, 24
_THREAD = 'warp_group'


def forward(
  plan: Plan,
  inputs: Inputs,
  sums: jax.Array,
  lists: None,
  *,
  interpret: Any = False,
) -> Outputs:
  """Runs the kernel; the outputs are those of `forward.forward`.

  Args:
    plan: with selection, without biases, in bfloat16; N a multiple of QUERIES,
      D and E 64 or 128, 64 queries to a tile.
    inputs: the inputs of the call.
    sums: the result of `forward.column_sums`.
    lists: None, since all keys are read.
    interpret: False, or the parameters of Pallas' interpreter.
  """
  assert lists is None
  heads = plan.forward_heads
  programs = plan.heads // heads
  rows = (plan.batch, plan.heads, plan.length)
  memory = None
  if plan.memory_tau is not None:
    memory = jax.ShapeDtypeStruct(
      (plan.batch, programs, plan.length), jnp.float32
    )
  operands = Operands(
    inputs.query,
    inputs.key,
    inputs.value,
    inputs.selection_query,
    inputs.selection_key,
    inputs.start,
    sums,
    jnp.asarray(np.tri(SIDE, k=-1), jnp.float16),
  )

  def selective_attention_hopper(*refs):
    inside, outside = len(Operands._fields), len(Outputs._fields)
    program = _Program(
      plan,
      Registers(bool(interpret)),
      Operands(*refs[:inside]),
      Outputs(*refs[inside : inside + outside]),
      Shared(*refs[inside + outside :]),
    )
    consumer = lax.axis_index(_THREAD)
    pl.when(consumer < CONSUMERS)(lambda: program.compute(consumer))
    pl.when(consumer == CONSUMERS)(program.load)

  return Outputs(
    *plgpu.kernel(
      selective_attention_hopper,
      out_type=(
        jax.ShapeDtypeStruct(inputs.query.shape, plan.dtype),
        jax.ShapeDtypeStruct(rows, jnp.float32),
        memory,
      ),
      scratch_types=shared_memory(plan),
      grid=(plan.length // QUERIES, plan.batch, programs),
      grid_names=('block', 'row', 'program'),
      num_threads=CONSUMERS + 1,
      thread_name=_THREAD,
      compiler_params=plgpu.CompilerParams(approx_math=True),
      interpret=interpret,
    )(*operands)
  )


class _Program(NamedTuple):
  """One program: a block of queries of some heads of a row.

  Attributes:
    plan: the plan of the call.
    registers: how arrays are multiplied.
    operands: refs.
    outputs: refs.
    shared: refs.
  """

  plan: Plan
  registers: Registers
  operands: Operands
  outputs: Outputs
  shared: Shared

  @property
  def heads(self) -> int:
    """The heads of the program."""
    return self.plan.forward_heads

  @property
  def stages(self) -> int:
    """The buffers of keys and of values."""
    return STAGES[self.plan.size]

  def _place(self):
    """Returns the row of the batch, the first head and the selecting one."""
    program = lax.axis_index('program')
    shared = self.plan.heads // self.plan.groups // self.heads
    group = lax.div(program, jnp.int32(shared))
    return lax.axis_index('row'), program * self.heads, group

  def _first_block(self):
    """Returns the number of the first consumer's rows, in blocks of SIDE."""
    # The last blocks have most tiles: they start first.
    blocks = self.plan.length // QUERIES
    return CONSUMERS * (blocks - 1 - lax.axis_index('block'))

  def _tiles(self):
    """Returns the number of tiles in a row of them."""
    return self._first_block() + CONSUMERS

  def _column(self, step):
    """Returns the first key of a step's tile: the tile 0 comes last."""
    return SIDE * lax.rem(step + 1, self._tiles())

  def _stage(self, step, head: int):
    return lax.rem(step * self.heads + head, jnp.int32(self.stages))

  def load(self):
    """The warp group that loads."""
    plgpu.set_max_registers(_PRODUCER_REGISTERS, action='decrease')
    shared, operands = self.shared, self.operands
    row, first_head, group = self._place()
    self._load_what_stays()

    def load_tile(step, _):
      columns = pl.ds(self._column(step), SIDE)
      plgpu.barrier_wait(shared.selection_free)
      plgpu.copy_gmem_to_smem(
        operands.selection_key.at[row, columns, group],
        shared.selection_key,
        shared.selection_ready,
      )
      blocks = pl.ds(self._first_block(), CONSUMERS)
      plgpu.copy_gmem_to_smem(
        operands.sums.at[row, group, blocks, columns],
        shared.before,
        shared.selection_ready,
      )
      for head in range(self.heads):
        stage = self._stage(step, head)
        plgpu.barrier_wait(shared.free.at[stage])
        for source, to in (
          (operands.key, shared.key),
          (operands.value, shared.value),
        ):
          plgpu.copy_gmem_to_smem(
            source.at[row, columns, first_head + head],
            to.at[stage],
            shared.ready.at[stage],
          )

    lax.fori_loop(0, self._tiles(), load_tile, None)
    # Every buffer is free once more after its last use.
    plgpu.barrier_wait(shared.selection_free)
    for stage in range(self.stages):
      plgpu.barrier_wait(shared.free.at[stage])

  def _load_what_stays(self):
    shared, operands = self.shared, self.operands
    row, first_head, group = self._place()

    def load(source, to):
      plgpu.copy_gmem_to_smem(source, to, shared.queries_ready)

    load(operands.lower, shared.lower.at[0])
    for consumer in range(CONSUMERS):
      rows = pl.ds(SIDE * (self._first_block() + consumer), SIDE)
      for head in range(self.heads):
        load(
          operands.query.at[row, rows, first_head + head],
          shared.query.at[head, consumer],
        )
      load(
        operands.selection_query.at[row, rows, group],
        shared.selection_query.at[consumer],
      )
      if self.plan.packed:
        load(operands.start.at[row, rows], shared.start.at[consumer])

  def compute(self, consumer):
    """A warp group that computes: 64 queries, along their tiles."""
    plgpu.set_max_registers(_CONSUMER_REGISTERS, action='increase')
    shared, plan = self.shared, self.plan
    # All buffers are free at first.
    plgpu.barrier_arrive(shared.selection_free)
    for stage in range(self.stages):
      plgpu.barrier_arrive(shared.free.at[stage])
    plgpu.barrier_wait(shared.queries_ready)
    block = self._first_block() + consumer

    def attend(everywhere, step, carry):
      running, memory = carry
      anew = self.registers.anew(consumer)
      tile = self._tile(anew, step, everywhere)
      if memory is not None:
        memory += hopper_tile.visible_tokens(plan, tile)
      running = tuple(
        self._attend(anew, step, head, tile, running[head])
        for head in range(self.heads)
      )
      return running, memory

    memory = None
    if plan.memory_tau is not None:
      memory = self.registers.full((SIDE,), 0.0)
    carry = ((Head.empty(self.registers, plan.size),) * self.heads, memory)
    # Of a whole row, all keys of the tiles between the first one and the
    # diagonal are seen, and may be masked. Two loops of heads of 128 need more
    # registers than there are.
    middle: Any = 0
    if not plan.packed and plan.size == SIDE:
      middle = jnp.maximum(block - 1, 0)
      carry = lax.fori_loop(0, middle, functools.partial(attend, True), carry)
    carry = lax.fori_loop(
      middle, self._tiles(), functools.partial(attend, False), carry
    )
    self._store(consumer, *carry)

  def _tile(self, consumer, step, everywhere: bool):
    """Returns the tile of F; all keys are seen everywhere, or some."""
    shared, registers = self.shared, self.registers
    place = hopper_tile.Place(
      SIDE * (self._first_block() + consumer),
      self._column(step),
      shared.start.at[consumer] if self.plan.packed else None,
    )
    visible = may_mask = None
    plgpu.barrier_wait(shared.selection_ready)
    logits = registers.product(
      shared.selection_query.at[consumer],
      shared.selection_key,
      transpose_b=True,
    )
    if not everywhere:
      may_mask = hopper_tile.may_mask(registers, place)
    masking = hopper_tile.masking(
      registers,
      hopper_tile.scores(self.plan, logits, may_mask),
      shared.before.at[consumer],
      shared.lower.at[registers.anew(0)],
      shared.halves.at[consumer],
    )
    plgpu.barrier_arrive(shared.selection_free)
    if not everywhere:
      visible = hopper_tile.visible(registers, place)
    return hopper_tile.make_tile(masking, visible)

  def _attend(self, consumer, step, head: int, tile, running: Head) -> Head:
    """Adds a tile of one head to its running softmax."""
    shared, registers = self.shared, self.registers
    stage = registers.anew(self._stage(step, head))
    plgpu.barrier_wait(shared.ready.at[stage])
    logits = registers.product(
      shared.query.at[head, consumer], shared.key.at[stage], transpose_b=True
    )
    running, weights = running.weights(self.plan, tile, logits)
    total = registers.add_products(
      running.total, (weights, shared.value.at[stage])
    )
    plgpu.barrier_arrive(shared.free.at[stage])
    return running._replace(total=total)

  def _store(self, consumer, running, memory):
    """Writes the results of a consumer's queries by TMA."""
    shared, outputs = self.shared, self.outputs
    row, first_head, _ = self._place()
    rows = pl.ds(SIDE * (self._first_block() + consumer), SIDE)
    for head, state in enumerate(running):
      shared.query[head, consumer] = state.output().astype(self.plan.dtype)
      shared.lse[head, consumer] = state.log_sum()
    if memory is not None:
      shared.memory[consumer] = memory
    plgpu.commit_smem()
    for head in range(self.heads):
      plgpu.copy_smem_to_gmem(
        shared.query.at[head, consumer],
        outputs.out.at[row, rows, first_head + head],
      )
      plgpu.copy_smem_to_gmem(
        shared.lse.at[head, consumer],
        outputs.lse.at[row, first_head + head, rows],
      )
    if memory is not None:
      plgpu.copy_smem_to_gmem(
        shared.memory.at[consumer],
        outputs.memory.at[row, lax.axis_index('program'), rows],
      )
    plgpu.wait_smem_to_gmem(0)
