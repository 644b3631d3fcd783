"""What the backward TPU kernels read and recompute in each tile."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from selective_t5x.attention.tpu import tile as pallas_tile
from selective_t5x.attention.tpu.blocks import LISTED, QUERY, Blocks, Step
from selective_t5x.attention.tpu.plan import Plan


class Saved(NamedTuple):
  """Arrays, or their blocks, that the kernels read beside the inputs.

  Attributes:
    grad: [B, H, N, D], the cotangent of the output.
    lse: f32[B, P, N, heads of a program], see forward.Outputs.
    delta: f32[B, P, N, heads of a program], the product of the output and its
      cotangent.
    memory_grad: f32[B, P, N, 1], the cotangent of M; None without M.
    later: f32[B, P, N / query block, 1, N], F's gradient summed over the rows
      of tiles below each; only for the kernel for queries.
    later_listed: f32[B, P, N / query block, 1, C], that of listed keys; None
      without them.
    after: f32[B, P, 1, N], F's gradient summed over all queries that read the
      key from a list; only for the kernel for keys in place, None without
      lists.
  """

  grad: Any
  lse: Any
  delta: Any
  memory_grad: Any
  later: Any = None
  later_listed: Any = None
  after: Any = None


def saved_specs(blocks: Blocks, saved: Saved) -> Saved:
  """Returns the block specs of what is saved."""
  rows = blocks.program(QUERY, blocks.plan.block.heads)
  specs = Saved(
    blocks.heads(QUERY),
    rows,
    rows,
    blocks.program(QUERY, 1),
    blocks.sums(),
    blocks.sums(LISTED),
    blocks.columns(),
  )
  return Saved(
    *(None if x is None else spec for x, spec in zip(saved, specs, strict=True))
  )


def share(blocks: Blocks, axis: int, length: int):
  """Returns the spec and shape of each program's share, f32[B, P, N, E]."""
  plan = blocks.plan
  if not plan.selects:
    return None
  shape = (plan.batch, plan.programs, length, plan.selection_size)
  spec = blocks.program(axis, plan.selection_size)
  return spec, jax.ShapeDtypeStruct(shape, jnp.float32)


def tile_of(plan: Plan, step: Step, keys) -> pallas_tile.Tile:
  """Recomputes a tile's selection from the sums among the step's keys."""
  sums = keys.sums[...] if plan.selects else None
  return pallas_tile.make_tile(plan, step, keys, sums)


def head_gradients(plan: Plan, tile, inputs, saved: Saved, head: int):
  """Returns weights and the gradient of the logits, see `tile`."""
  return pallas_tile.head_gradients(
    plan,
    tile,
    inputs,
    head,
    saved.grad[head],
    saved.lse[:, head : head + 1],
    saved.delta[:, head : head + 1],
  )


def selection_gradient(plan: Plan, tile, saved: Saved, logit_grads, later):
  """Returns the gradient of the selection logits, see `tile`."""
  return pallas_tile.selection_gradient(
    plan,
    tile,
    logit_grads,
    None if saved.memory_grad is None else saved.memory_grad[...],
    later,
  )


def of_products(plan: Plan, selection: jax.Array) -> jax.Array:
  """Turns gradients of selection logits into those of their products."""
  return (plan.selection_scale * selection).astype(plan.dtype)
