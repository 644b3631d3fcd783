"""The forward TPU kernel: selective attention, tile by tile.

Tiles run row by row, so that a tile needs only the column sums of the selection
scores of earlier queries. A tile of F is computed once for all heads of a
program.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from selective_t5x.attention.fused import FAR, product
from selective_t5x.attention.tpu import tile as pallas_tile
from selective_t5x.attention.tpu.blocks import KEY, QUERY, Blocks
from selective_t5x.attention.tpu.plan import Plan


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
    limits: f32[B, G, N / query block, 1, N], see `limits`; None where no key is
      dropped.
  """

  query: Any
  key: Any
  value: Any
  selection_query: Any = None
  selection_key: Any = None
  start: Any = None
  bias: Any = None
  selection_bias: Any = None
  limits: Any = None


class Outputs(NamedTuple):
  """Outputs of the kernel, as arrays or as blocks.

  Attributes:
    out: [B, H, N, D].
    lse: f32[B, P, N, heads of a program], the log of the sum of the
      exponentials of each row of logits.
    sums: f32[B, P, N / query block, 1, N], the column sums of S above each row
      of tiles; None without selection.
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
      selection.
  """

  total: Any
  top: Any
  weight: Any
  sums: Any


def forward(plan: Plan, inputs: Inputs) -> Outputs:
  """Runs the kernel."""
  blocks = Blocks(plan, outer=QUERY)
  block = plan.block
  rows = (plan.batch, plan.programs, plan.length)
  sums = (plan.batch, plan.programs, plan.query_blocks, 1, plan.length)

  def float32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)

  return blocks.call(
    _kernel,
    (inputs,),
    name='attention_forward',
    in_specs=(input_specs(blocks),),
    out=Outputs(
      (
        blocks.heads(QUERY),
        jax.ShapeDtypeStruct(inputs.query.shape, plan.dtype),
      ),
      (blocks.program(QUERY, block.heads), float32(*rows, block.heads)),
      (blocks.sums(), float32(*sums)) if plan.selects else None,
      (blocks.program(QUERY, 1), float32(*rows, 1))
      if plan.memory_tau is not None
      else None,
    ),
    scratch=Scratch(
      pltpu.VMEM((block.heads, block.query, plan.size), jnp.float32),
      pltpu.VMEM((block.heads, block.query, 1), jnp.float32),
      pltpu.VMEM((block.heads, block.query, 1), jnp.float32),
      pltpu.VMEM((plan.key_blocks, 1, block.key), jnp.float32)
      if plan.selects
      else None,
    ),
  )


def input_specs(blocks: Blocks) -> Inputs:
  """Returns the block specs of the inputs."""
  plan = blocks.plan
  selects = plan.selects
  return Inputs(
    blocks.heads(QUERY),
    blocks.heads(KEY),
    blocks.heads(KEY),
    blocks.selection(QUERY) if selects else None,
    blocks.selection(KEY) if selects else None,
    blocks.row(QUERY) if plan.packed else None,
    None if plan.bias is None else blocks.strip(plan.bias),
    None if plan.selection_bias is None else blocks.strip(plan.selection_bias),
    blocks.limits() if plan.forgets else None,
  )


def _kernel(
  plan: Plan, blocks: Blocks, inputs: Inputs, outputs: Outputs, scratch: Scratch
):
  i, j = blocks.tile(pl.program_id(2), pl.program_id(3))

  if plan.selects:

    @pl.when(i == 0)
    def _clear_sums():
      scratch.sums[j] = jnp.zeros(scratch.sums.shape[1:], jnp.float32)

  @pl.when(j == 0)
  def _clear():
    scratch.total[...] = jnp.zeros_like(scratch.total)
    scratch.top[...] = jnp.full_like(scratch.top, -FAR)
    scratch.weight[...] = jnp.zeros_like(scratch.weight)
    if outputs.memory is not None:
      outputs.memory[...] = jnp.zeros_like(outputs.memory)

  @pl.when(plan.runs(i, j))
  def _attend_tile():
    sums = scratch.sums[j] if plan.selects else None
    if plan.selects:
      outputs.sums[...] = sums

    @pallas_tile.when_alive(plan, i, j, inputs, sums)
    def _():
      tile = pallas_tile.make_tile(plan, i, j, inputs, sums)
      if plan.selects:
        scratch.sums[j] = tile.sums
      if outputs.memory is not None:
        outputs.memory[...] += _visible_tokens(plan, tile)
      for head in range(plan.block.heads):
        _attend(plan, tile, inputs, scratch, head)

  @pl.when(j == plan.last_key_block(i))
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
