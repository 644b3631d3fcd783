"""The forward TPU kernel: selective attention, tile by tile.

Tiles run row by row, so that a tile needs only the column sums of the selection
scores of earlier queries. A tile of F is computed once for all heads of a
program. Where keys die, the column sums are known before (`column_sums`), and
so are the tiles that are left.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from selective_t5x.attention.fused import FAR, product
from selective_t5x.attention.tpu import tile as pallas_tile
from selective_t5x.attention.tpu.blocks import (
  KEY,
  LISTED,
  QUERY,
  Blocks,
  Step,
)
from selective_t5x.attention.tpu.lists import Listed
from selective_t5x.attention.tpu.live_blocks import LiveBlocks
from selective_t5x.attention.tpu.plan import Plan
from selective_t5x.attention.tpu.reads import Reads, counted


class Inputs(NamedTuple):
  """Inputs of the kernel, as arrays or as blocks.

  Attributes:
    query: [B, H, N, D].
    key: [B, H, N, D].
    value: [B, H, N, D].
    selection_query: [B, G, N, E]; None without selection.
    selection_key: [B, G, N, E]; None without selection.
    start: i32[B, 1, N, 1], the position of the first token of each query's
      segment, N for padding; None where every row is one segment.
    bias: f32[1, H or 1, S, 1, W], see `distances.Strips`; None without biases.
    selection_bias: f32[1, G or 1, S, 1, W]; None without biases of selection.
    sums: f32[B, G, N / query block, 1, N], the column sums of S above each row
      of tiles; None where the forward kernel computes them. For the backward
      kernels [B, P, ...] where no key dies.
    listed: the listed keys; None without lists.
    position: i32[B, G, 1, N], the numbers of the keys; None where they are in
      place, in order.
  """

  query: Any
  key: Any
  value: Any
  selection_query: Any = None
  selection_key: Any = None
  start: Any = None
  bias: Any = None
  selection_bias: Any = None
  sums: Any = None
  listed: Listed | None = None
  position: Any = None


class Outputs(NamedTuple):
  """Outputs of the kernel, as arrays or as blocks.

  Attributes:
    out: [B, H, N, D].
    lse: f32[B, P, N, heads of a program], the log of the sum of the
      exponentials of each row of logits.
    sums: f32[B, P, N / query block, 1, N], the column sums of S above each row
      of tiles; None without selection and where they are an input.
    memory: f32[B, P, N, 1], M; None if not requested.
  """

  out: Any
  lse: Any
  sums: Any
  memory: Any


class Scratch(NamedTuple):
  """The state that stays in vector memory from tile to tile.

  Attributes:
    total: f32[heads, Q, D], the weighted sum of the values so far.
    top: f32[heads, Q, 1], the largest logit so far.
    weight: f32[heads, Q, 1], the sum of the exponentials so far.
    sums: f32[key blocks, 1, K], the column sums of S so far; None without
      selection and where they are an input.
  """

  total: Any
  top: Any
  weight: Any
  sums: Any


def forward(plan: Plan, inputs: Inputs, reads: Reads | None = None) -> Outputs:
  """Runs the kernel; `reads` are what it reads where keys die."""
  blocks = row_blocks(plan, reads)
  block = plan.block
  rows = (plan.batch, plan.programs, plan.length)
  sums = (plan.batch, plan.programs, plan.query_blocks, 1, plan.length)
  keeps_sums = plan.selects and not plan.forgets

  def float32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)

  return blocks.call(
    _kernel,
    (inputs,),
    name='attention_forward',
    in_specs=(input_specs(blocks, inputs),),
    out=Outputs(
      (
        blocks.heads(QUERY),
        jax.ShapeDtypeStruct(inputs.query.shape, plan.dtype),
      ),
      (blocks.program(QUERY, block.heads), float32(*rows, block.heads)),
      (blocks.sums(), float32(*sums)) if keeps_sums else None,
      (blocks.program(QUERY, 1), float32(*rows, 1))
      if plan.memory_tau is not None
      else None,
    ),
    scratch=Scratch(
      pltpu.VMEM((block.heads, block.query, plan.size), jnp.float32),
      pltpu.VMEM((block.heads, block.query, 1), jnp.float32),
      pltpu.VMEM((block.heads, block.query, 1), jnp.float32),
      pltpu.VMEM((plan.key_blocks, 1, block.key), jnp.float32)
      if keeps_sums
      else None,
    ),
  )


def row_blocks(plan: Plan, reads: Reads | None) -> Blocks:
  """Returns the blocks of a kernel that goes along the rows of tiles."""
  if reads is None:
    return Blocks(plan, QUERY)
  return LiveBlocks(plan, QUERY, reads.queries, counted(plan, reads).queries)


def input_specs(blocks: Blocks, inputs: Inputs) -> Inputs:
  """Returns the block specs of the inputs."""
  plan = blocks.plan
  # Without tables each program has sums of its own.
  shared = plan.programs_a_group if plan.forgets else 1
  specs = Inputs(
    blocks.heads(QUERY),
    blocks.heads(KEY),
    blocks.heads(KEY),
    blocks.selection(QUERY) if plan.selects else None,
    blocks.selection(KEY) if plan.selects else None,
    blocks.row(QUERY),
    None if plan.bias is None else blocks.strip(plan.bias),
    None if plan.selection_bias is None else blocks.strip(plan.selection_bias),
    blocks.sums(KEY, shared),
    inputs.listed
    and Listed(
      blocks.heads(LISTED),
      blocks.heads(LISTED),
      blocks.selection(LISTED),
      blocks.columns(LISTED, shared),
      blocks.sums(LISTED, shared),
    ),
    blocks.columns(KEY, shared),
  )
  return Inputs(
    *(
      None if x is None else spec for x, spec in zip(inputs, specs, strict=True)
    )
  )


def _kernel(
  plan: Plan, step: Step, inputs: Inputs, outputs: Outputs, scratch: Scratch
):
  if scratch.sums is not None:

    @pl.when(step.i == 0)
    def _clear_sums():
      scratch.sums[step.j] = jnp.zeros(scratch.sums.shape[1:], jnp.float32)

  @pl.when(step.first)
  def _clear():
    scratch.total[...] = jnp.zeros_like(scratch.total)
    scratch.top[...] = jnp.full_like(scratch.top, -FAR)
    scratch.weight[...] = jnp.zeros_like(scratch.weight)
    if outputs.memory is not None:
      outputs.memory[...] = jnp.zeros_like(outputs.memory)

  @pl.when(step.runs)
  def _attend_tile():
    keys = pallas_tile.of_step(step, inputs)
    sums = None
    if plan.forgets:
      sums = keys.sums[...]
    elif plan.selects:
      sums = scratch.sums[step.j]
      outputs.sums[...] = sums
    tile = pallas_tile.make_tile(plan, step, keys, sums)
    if scratch.sums is not None:
      scratch.sums[step.j] = tile.sums
    if outputs.memory is not None:
      outputs.memory[...] += _visible_tokens(plan, tile)
    for head in range(plan.block.heads):
      _attend(plan, tile, keys, scratch, head)

  @pl.when(step.last)
  def _finish():
    for head in range(plan.block.heads):
      weight = scratch.weight[head]
      outputs.out[head] = (scratch.total[head] / weight).astype(plan.dtype)
      outputs.lse[:, head : head + 1] = scratch.top[head] + jnp.log(weight)


def _visible_tokens(plan, tile):
  """Returns the part of M from this tile, f32[Q, 1]."""
  counted = tile.visible & (tile.masking < plan.memory_tau)
  seen = jnp.where(counted, 1.0 - tile.masking / plan.memory_tau, 0.0)
  return jnp.sum(seen, axis=1, keepdims=True)


def _attend(plan, tile, inputs, scratch, head):
  """Adds a tile of one head to the running softmax."""
  logits = pallas_tile.head_logits(plan, tile, inputs, head)
  before = scratch.top[head]
  top = jnp.maximum(before, jnp.max(logits, axis=1, keepdims=True))
  shrink = jnp.exp(before - top)
  weights = jnp.exp(logits - top)
  row_weight = jnp.sum(weights, axis=1, keepdims=True)
  scratch.top[head] = top
  scratch.weight[head] = shrink * scratch.weight[head] + row_weight
  scratch.total[head] = shrink * scratch.total[head] + product(
    weights.astype(plan.dtype), inputs.value[head]
  )
