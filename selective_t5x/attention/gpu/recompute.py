"""What the backward GPU kernels read, and a tile of F and of weights again.

They recompute F from the saved column sums of the selection scores, and the
weights from the saved log-sum-exp. Shapes are those of `tile`.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl

from selective_t5x.attention.gpu import tile as gpu_tile
from selective_t5x.attention.gpu.blocks import Blocks, Inputs
from selective_t5x.attention.gpu.forward import sums_spec
from selective_t5x.attention.gpu.plan import Plan


class Saved(NamedTuple):
  """What the kernels read beside the inputs, as arrays or a program's parts.

  Attributes:
    grad: [B, N, H, D], the cotangent of the output.
    lse: f32[B, H, N], see forward.Outputs.
    delta: f32[B, H, N], the product of the output and its cotangent.
    sums: see forward.Sums; None without selection.
    memory_grad: f32[B, P, N], the cotangent of M for the first program of each
      group, zero for the others; None without M.
    later: f32[B, P, N / query block, N], F's gradient summed over the rows of
      tiles below each; None without selection, and for the kernel for keys,
      which computes it.
  """

  grad: Any
  lse: Any
  delta: Any
  sums: Any
  memory_grad: Any
  later: Any = None


def saved_specs(blocks: Blocks, saved: Saved) -> Saved:
  """Returns the block specs of what is saved."""
  plan = blocks.plan
  rows = blocks.rows_of_heads()
  specs = Saved(
    blocks.of_heads(plan.length),
    rows,
    rows,
    sums_spec(blocks),
    blocks.of_program(plan.length),
    blocks.of_program(plan.query_blocks, plan.length),
  )
  return Saved(
    *(None if x is None else spec for x, spec in zip(saved, specs, strict=True))
  )


class Rows(NamedTuple):
  """What a kernel reads of a block of queries.

  Attributes:
    rows: the slice of the block.
    heads: for each head query [Q, D], grad [Q, D], lse f32[Q], delta f32[Q].
    selecting: [Q, E], the selecting queries; None without selection.
  """

  rows: Any
  heads: tuple
  selecting: Any


def of_rows(plan: Plan, heads: int, inputs: Inputs, saved: Saved, i) -> Rows:
  """Reads block i of queries."""
  rows = pl.ds(i * plan.block.query, plan.block.query)
  return Rows(
    rows,
    tuple(
      (
        inputs.query[rows, head, :],
        saved.grad[rows, head, :],
        saved.lse[head, rows],
        saved.delta[head, rows],
      )
      for head in range(heads)
    ),
    inputs.selection_query[rows, :] if plan.selects else None,
  )


class Block(NamedTuple):
  """A tile of a backward kernel.

  Attributes:
    place: where it lies.
    tile: its selection.
    bias_of: returns the biases of the logits of a head, see `tile.bias_of`.
  """

  place: gpu_tile.Place
  tile: gpu_tile.Tile
  bias_of: Any


def block_at(
  plan: Plan,
  inputs: Inputs,
  saved: Saved,
  select,
  *,
  i,
  columns: gpu_tile.Columns,
  query_axis: int,
  near: bool,
) -> Block:
  """Recomputes a tile of F.

  Args:
    plan: the plan of the call.
    inputs: the program's inputs.
    saved: what is saved.
    select: as in `tile.make_tile`.
    i: i32[], the block of queries.
    columns: the keys.
    query_axis: 0 or 1.
    near: see `plan.Range`.
  """
  place = gpu_tile.place_of(plan, inputs, i, columns, query_axis)
  bias_of = functools.partial(gpu_tile.bias_of, plan, place, near=near)
  sums = saved.sums[i, columns.slots] if plan.selects else None
  tile = gpu_tile.make_tile(
    plan, place, select, sums, bias_of(inputs.selection_bias, 0)
  )
  return Block(place, tile, functools.partial(bias_of, inputs.bias))


def logit_gradients(plan: Plan, inputs: Inputs, of_block: Rows, block: Block):
  """Returns the gradients of the logits in a tile [Q, K], f32, for each head.

  Args:
    plan: the plan of the call.
    inputs: the program's inputs.
    of_block: the tile's queries.
    block: the tile.
  """
  slots = block.place.columns.slots
  return [
    gpu_tile.head_gradients(
      plan,
      block.tile,
      query,
      inputs.key[slots, head, :],
      inputs.value[slots, head, :],
      grad,
      lse,
      delta,
      0,
      block.bias_of(head),
    )[1]
    for head, (query, grad, lse, delta) in enumerate(of_block.heads)
  ]


def selection_gradient(
  plan: Plan, block: Block, saved: Saved, rows, logit_grads, later
):
  """Carries the heads' gradients to the selection logits of a tile.

  Args:
    plan: the plan of the call.
    block: the tile.
    saved: what is saved.
    rows: the slice of the tile's queries.
    logit_grads: f32, the gradients of all heads' logits, summed.
    later: f32[K], see `tile.selection_gradient`.

  Returns:
    As `tile.selection_gradient`.
  """
  memory_grad = None if saved.memory_grad is None else saved.memory_grad[rows]
  return gpu_tile.selection_gradient(
    plan,
    block.tile,
    logit_grads,
    memory_grad,
    later,
    block.place.query_axis,
  )


def added_up(parts):
  """Returns the sum of the gradients of the heads."""
  return functools.reduce(jnp.add, parts)
