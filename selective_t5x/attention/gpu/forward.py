"""The forward GPU kernels: the column sums of selection, and attention.

Programs of a GPU run in any order, so F's running sum over earlier queries is
computed first, at the start of every block of queries: N * N / block numbers.
Then a tile of F is what came before plus the sum over the rows above in the
tile, computed once for all heads of a program.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from selective_t5x.attention.fused import FAR, product
from selective_t5x.attention.gpu import tile as gpu_tile
from selective_t5x.attention.gpu.blocks import Blocks, Inputs
from selective_t5x.attention.gpu.live import (
  Lists,
  all_alive,
  columns_of,
  key_blocks,
  lists_spec,
)
from selective_t5x.attention.gpu.plan import Plan
from selective_t5x.attention.gpu.windows import with_windows


class Outputs(NamedTuple):
  """Results of the attention kernel.

  Attributes:
    out: [B, N, H, D].
    lse: f32[B, H, N], the log2 of the sum of the exponentials of each row of
      logits.
    memory: f32[B, P, N], M; None if not requested.
  """

  out: Any
  lse: Any
  memory: Any


class Sums(NamedTuple):
  """The result of the kernel of the column sums.

  Attributes:
    sums: f32[B, G, N / query block, N], the column sums of S above each row of
      tiles. Tiles above the diagonal are never written, nor read.
  """

  sums: Any


def column_sums(plan: Plan, inputs: Inputs) -> jax.Array | None:
  """Returns `Sums.sums`; None without selection."""
  if not plan.selects:
    return None
  blocks = Blocks(plan, plan.block.sums)
  selection = blocks.selection()
  return blocks.call(
    _sums_kernel,
    (
      inputs.selection_query,
      inputs.selection_key,
      inputs.start,
      with_windows(plan, inputs, 1).selection_bias,
    ),
    name='attention_sums',
    blocks=plan.length // plan.block.backward_key,
    in_specs=(
      selection,
      selection,
      blocks.start(),
      blocks.selection_bias(1),
    ),
    out=Sums(blocks.share(plan.query_blocks, plan.length)),
  ).sums


def _sums_kernel(
  plan: Plan, _, selection_query, selection_key, start, bias, out
):
  """Goes down the tiles of one block of keys."""
  j, size = pl.program_id(0), plan.block.backward_key
  columns = pl.ds(j * size, size)
  keys = selection_key[columns, :]

  def add(near, i, sums):
    out.sums[i, columns] = sums
    rows = pl.ds(i * plan.block.query, plan.block.query)
    place = gpu_tile.Place(
      i * plan.block.query,
      plan.block.query,
      gpu_tile.Columns.in_order(j * size, size),
      None if start is None else start[rows],
      1,
    )
    scores = gpu_tile.selection_scores(
      plan,
      place,
      selection_query[rows, :],
      keys,
      gpu_tile.bias_of(plan, place, bias, 0, near),
    )
    return sums + jnp.sum(scores, axis=1)

  last = plan.query_blocks - 1
  sums = jnp.zeros((size,), jnp.float32)
  for first, end, near in plan.query_blocks_of(j, size, last):
    sums = lax.fori_loop(first, end, functools.partial(add, near), sums)
  out.sums[last, columns] = sums


def forward(
  plan: Plan, inputs: Inputs, sums: jax.Array | None, lists: Lists | None
) -> Outputs:
  """Runs the attention kernel.

  Args:
    plan: the plan of the call.
    inputs: its inputs.
    sums: those of `column_sums`.
    lists: which keys are read; None for all.
  """
  blocks = Blocks(plan, plan.block.forward, plan.forward_heads)
  memory = plan.memory_tau is not None
  axis = 0 if lists is None else 1
  whole = (plan.batch, plan.heads, plan.length)
  return blocks.call(
    _forward_kernel,
    (with_windows(plan, inputs, axis), sums, lists),
    name='attention_forward',
    blocks=plan.query_blocks,
    in_specs=(
      blocks.inputs(axis),
      sums_spec(blocks),
      lists_spec(blocks, lists),
    ),
    out=Outputs(
      (
        blocks.of_heads(plan.length),
        jax.ShapeDtypeStruct(inputs.query.shape, plan.dtype),
      ),
      (blocks.rows_of_heads(), jax.ShapeDtypeStruct(whole, jnp.float32)),
      blocks.share(plan.length) if memory else None,
    ),
    numbers=all_alive(plan) if lists else None,
  )


def sums_spec(blocks: Blocks) -> pl.BlockSpec | None:
  """Returns the spec of the column sums: [N / query block, N]."""
  plan = blocks.plan
  if not plan.selects:
    return None
  return blocks.of_group(plan.query_blocks, plan.length)


class _Head(NamedTuple):
  """The running softmax of a head.

  Attributes:
    total: f32[Q, D], the weighted sum of the values so far.
    top: f32[Q], the largest logit so far.
    weight: f32[Q], the sum of the exponentials so far.
  """

  total: jax.Array
  top: jax.Array
  weight: jax.Array


def _forward_kernel(
  plan: Plan, heads: int, inputs: Inputs, sums, lists, outputs
):
  """Goes along the tiles of one block of queries."""
  # The last blocks have most tiles: they start first.
  i = plan.query_blocks - 1 - pl.program_id(0)
  size = plan.block.query
  rows = pl.ds(i * size, size)
  queries = [inputs.query[rows, head, :] for head in range(heads)]
  selecting = inputs.selection_query[rows, :] if plan.selects else None

  def attend(near, j, carry):
    running, memory = carry
    columns = columns_of(plan, lists, i, j, plan.block.key)
    place = gpu_tile.place_of(plan, inputs, i, columns, 0)
    select = before = None
    if plan.selects:
      select = (selecting, inputs.selection_key[columns.slots, :])
      before = sums[i, columns.slots]
    bias_of = functools.partial(gpu_tile.bias_of, plan, place, near=near)
    tile = gpu_tile.make_tile(
      plan, place, select, before, bias_of(inputs.selection_bias, 0)
    )
    if memory is not None:
      memory += _visible_tokens(plan, tile)
    running = tuple(
      _attend(
        plan,
        tile,
        queries[head],
        inputs.key[columns.slots, head, :],
        inputs.value[columns.slots, head, :],
        running[head],
        bias_of(inputs.bias, head),
      )
      for head in range(heads)
    )
    return running, memory

  zeros = jnp.zeros((size,), jnp.float32)
  empty = _Head(
    jnp.zeros((size, plan.size), jnp.float32),
    jnp.full((size,), -FAR, jnp.float32),
    zeros,
  )
  carry = ((empty,) * heads, None if outputs.memory is None else zeros)
  for first, end, near in key_blocks(plan, lists, i, plan.block.key):
    carry = lax.fori_loop(first, end, functools.partial(attend, near), carry)
  running, memory = carry
  for head, (total, top, weight) in enumerate(running):
    outputs.out[rows, head, :] = (total / weight[:, None]).astype(plan.dtype)
    outputs.lse[head, rows] = top + jnp.log2(weight)
  if memory is not None:
    outputs.memory[rows] = memory


def _visible_tokens(plan, tile):
  """Returns the part of M from this tile, f32[Q]."""
  counted = tile.visible & (tile.masking < plan.memory_tau)
  seen = jnp.where(counted, 1.0 - tile.masking / plan.memory_tau, 0.0)
  return jnp.sum(seen, axis=1)


def _attend(plan, tile, query, key, value, head: _Head, bias) -> _Head:
  """Adds a tile of one head to its running softmax."""
  logits = gpu_tile.head_logits(plan, tile, query, key, 0, bias)
  top = jnp.maximum(head.top, jnp.max(logits, axis=1))
  shrink = jnp.exp2(head.top - top)
  weights = jnp.exp2(logits - top[:, None])
  return _Head(
    shrink[:, None] * head.total + product(weights.astype(plan.dtype), value),
    top,
    shrink * head.weight + jnp.sum(weights, axis=1),
  )
