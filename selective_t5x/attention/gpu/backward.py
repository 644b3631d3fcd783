"""The backward GPU kernels: one for keys and values, one for queries.

Both recompute a tile of F from the saved column sums of the selection scores,
and the weights from the saved log-sum-exp. F's gradient is summed over later
queries: a program of the kernel for keys and values goes through the blocks of
queries from the last one up, and saves these sums for the kernel for queries.
The sum over heads is taken last, over the programs' shares of the gradients of
selection: all that lies between is linear in it.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from selective_t5x.attention.fused import product
from selective_t5x.attention.gpu import biases, recompute
from selective_t5x.attention.gpu import tile as gpu_tile
from selective_t5x.attention.gpu.blocks import Blocks, Inputs
from selective_t5x.attention.gpu.forward import Outputs
from selective_t5x.attention.gpu.live import (
  Lists,
  Live,
  Order,
  all_alive,
  columns_of,
  key_blocks,
  lists_spec,
  order_spec,
  ordered,
  owned_keys,
)
from selective_t5x.attention.gpu.plan import Plan
from selective_t5x.attention.gpu.recompute import Saved
from selective_t5x.attention.gpu.windows import with_windows


class KeyGrads(NamedTuple):
  """Results of the kernel for keys and values.

  Attributes:
    key: [B, N, H, D].
    value: [B, N, H, D].
    selection_key: f32[B, P, N, E], the share of each program.
    later: see Saved.
  """

  key: Any
  value: Any
  selection_key: Any
  later: Any


class QueryGrads(NamedTuple):
  """Results of the kernel for queries.

  Attributes:
    query: [B, N, H, D].
    selection_query: f32[B, P, N, E], the share of each program.
    far: f32[B, P, 1, N / query block], the share of the gradient of the
      selecting head's bias of keys from `behind` on; in a bidirectional call
      f32[B, P, heads, N / query block], those of the program's heads; else
      None.
  """

  query: Any
  selection_query: Any
  far: Any


def backward(
  plan: Plan,
  inputs: Inputs,
  sums,
  live: Live | None,
  outputs: Outputs,
  grad,
  memory_grad,
) -> Inputs:
  """Runs both kernels.

  Args:
    plan: the plan of the call.
    inputs: those of the forward kernel.
    sums: those of the forward kernel.
    live: which keys are read; None for all.
    outputs: those of the forward kernel.
    grad: [B, N, H, D], the cotangent of the output.
    memory_grad: f32[B, G, N], the cotangent of M; None without it.

  Returns:
    The gradients of the inputs; start has none.
  """
  delta = jnp.sum(
    outputs.out.astype(jnp.float32) * grad.astype(jnp.float32), axis=-1
  ).swapaxes(1, 2)
  # Programs of a group, which share an F.
  shared = plan.heads // plan.groups // plan.backward_heads
  if memory_grad is not None:
    first = jnp.arange(shared * plan.groups) % shared == 0
    memory_grad = jnp.repeat(memory_grad, shared, axis=1)
    memory_grad = jnp.where(first[:, None], memory_grad, 0.0)
  saved = Saved(grad, outputs.lse, delta, sums, memory_grad)
  lists, ends = (None, None) if live is None else live
  order = None if ends is None else ordered(ends, plan.block)

  def over_programs(share):
    """Returns f32[B, P, N, E], summed over programs, as [B, N, G, E]."""
    if share is None:
      return None
    groups = (plan.batch, plan.groups, shared)
    total = jnp.sum(share.reshape(*groups, *share.shape[2:]), axis=2)
    return total.swapaxes(1, 2).astype(plan.dtype)

  key_grads = _key_grads(plan, inputs, saved, order)
  of_selection = over_programs(key_grads.selection_key)
  # The shares of one kernel are summed before those of the other exist.
  of_selection, later = lax.optimization_barrier(
    (of_selection, key_grads.later)
  )
  saved = saved._replace(later=later)
  query_grads = _query_grads(plan, inputs, saved, lists)
  of_bias = None, None
  if plan.behind is not None:
    of_bias = biases.gradients(plan, inputs, saved, ends, query_grads.far)

  return Inputs(
    query_grads.query,
    key_grads.key,
    key_grads.value,
    over_programs(query_grads.selection_query),
    of_selection,
    None,
    *of_bias,
  )


def _share(blocks: Blocks):
  """Returns the spec and shape of each program's share, f32[B, P, N, E]."""
  plan = blocks.plan
  if not plan.selects:
    return None
  return blocks.share(plan.length, plan.selection_size)


def _key_grads(
  plan: Plan, inputs: Inputs, saved: Saved, order: Order | None
) -> KeyGrads:
  blocks = Blocks(plan, plan.block.keys, plan.backward_heads)
  heads = blocks.of_heads(plan.keys)
  like = jax.ShapeDtypeStruct(inputs.key.shape, plan.dtype)
  later = None
  if plan.selects:
    later = blocks.share(plan.query_blocks, plan.length)
  return blocks.call(
    _key_kernel,
    (with_windows(plan, inputs, 1), saved, order),
    name='attention_keys',
    blocks=plan.keys // plan.block.backward_key,
    in_specs=(
      blocks.inputs(1),
      recompute.saved_specs(blocks, saved),
      order_spec(blocks, order),
    ),
    out=KeyGrads((heads, like), (heads, like), _share(blocks), later),
    numbers=all_alive(plan) if order else None,
  )


def _key_kernel(
  plan: Plan,
  heads: int,
  inputs: Inputs,
  saved: Saved,
  order: Order | None,
  grads: KeyGrads,
):
  """Goes up the tiles of one block of keys, which are [K, Q]."""
  j, size = pl.program_id(0), plan.block.backward_key
  owned = owned_keys(plan, order, j, size)
  slots = owned.slots
  pairs = [
    (inputs.key[slots, head, :], inputs.value[slots, head, :])
    for head in range(heads)
  ]
  selecting = inputs.selection_key[slots, :] if plan.selects else None

  def add(last, near, step, carry):
    sums, of_selection, later = carry
    i = last - step
    rows = pl.ds(i * plan.block.query, plan.block.query)
    select = None
    if plan.selects:
      grads.later[i, slots] = later
      select = (inputs.selection_query[rows, :], selecting)
    block = recompute.block_at(
      plan,
      inputs,
      saved,
      select,
      i=i,
      columns=owned.columns(i),
      query_axis=1,
      near=near,
    )
    total = jnp.zeros((size, plan.block.query), jnp.float32)
    added = []
    for head, (key, value) in enumerate(pairs):
      query, grad = inputs.query[rows, head, :], saved.grad[rows, head, :]
      weights, logit_grads = gpu_tile.head_gradients(
        plan,
        block.tile,
        query,
        key,
        value,
        grad,
        saved.lse[head, rows],
        saved.delta[head, rows],
        1,
        block.bias_of(head),
      )
      of_key, of_value = sums[head]
      of_value += product(weights.astype(plan.dtype), grad)
      of_key += product(logit_grads.astype(plan.dtype), query)
      added.append((of_key, of_value))
      total += logit_grads
    if plan.selects:
      selection, later = recompute.selection_gradient(
        plan, block, saved, rows, total, later
      )
      of_selection += product(selection.astype(plan.dtype), select[0])
    return tuple(added), of_selection, later

  zeros = jnp.zeros((size, plan.size), jnp.float32)
  carry: tuple = (((zeros, zeros),) * heads, None, None)
  if plan.selects:
    carry = (
      carry[0],
      jnp.zeros((size, plan.selection_size), jnp.float32),
      jnp.zeros((size,), jnp.float32),
    )
  for first, end, near in owned.query_blocks[::-1]:
    step = functools.partial(add, end - 1, near)
    carry = lax.fori_loop(0, end - first, step, carry)
  sums, of_selection, _ = carry
  for head, (of_key, of_value) in enumerate(sums):
    grads.key[slots, head, :] = (plan.scale * of_key).astype(plan.dtype)
    grads.value[slots, head, :] = of_value.astype(plan.dtype)
  if plan.selects:
    grads.selection_key[slots, :] = plan.selection_scale * of_selection


def _query_grads(
  plan: Plan, inputs: Inputs, saved: Saved, lists: Lists | None
) -> QueryGrads:
  blocks = Blocks(plan, plan.block.queries, plan.backward_heads)
  like = jax.ShapeDtypeStruct(inputs.query.shape, plan.dtype)
  axis = 0 if lists is None else 1
  far = None
  if plan.behind is not None and (plan.selects or plan.full is not None):
    number = 1 if plan.selects else plan.backward_heads
    far = blocks.share(number, plan.query_blocks)
  return blocks.call(
    _query_kernel,
    (with_windows(plan, inputs, axis), saved, lists),
    name='attention_queries',
    blocks=plan.query_blocks,
    in_specs=(
      blocks.inputs(axis),
      recompute.saved_specs(blocks, saved),
      lists_spec(blocks, lists),
    ),
    out=QueryGrads((blocks.of_heads(plan.length), like), _share(blocks), far),
    numbers=all_alive(plan) if lists else None,
  )


def _query_kernel(
  plan: Plan,
  heads: int,
  inputs: Inputs,
  saved: Saved,
  lists: Lists | None,
  grads: QueryGrads,
):
  """Goes along the tiles of one block of queries, which are [Q, K]."""
  # The last blocks have most tiles: they start first.
  i = plan.query_blocks - 1 - pl.program_id(0)
  size = plan.block.backward_key
  of_block = recompute.of_rows(plan, heads, inputs, saved, i)
  rows = of_block.rows

  def add(near, j, carry):
    sums, of_selection, far = carry
    columns = columns_of(plan, lists, i, j, size)
    slots = columns.slots
    select = None
    if plan.selects:
      select = (of_block.selecting, inputs.selection_key[slots, :])
    block = recompute.block_at(
      plan,
      inputs,
      saved,
      select,
      i=i,
      columns=columns,
      query_axis=0,
      near=near,
    )
    logit_grads = recompute.logit_gradients(plan, inputs, of_block, block)
    sums = tuple(
      total + product(x.astype(plan.dtype), inputs.key[slots, head, :])
      for head, (total, x) in enumerate(zip(sums, logit_grads, strict=True))
    )
    of_biases = logit_grads
    if plan.selects:
      selection, _ = recompute.selection_gradient(
        plan,
        block,
        saved,
        rows,
        recompute.added_up(logit_grads),
        saved.later[i, slots],
      )
      of_selection += product(selection.astype(plan.dtype), select[1])
      of_biases = [selection]
    if far is not None:
      far = tuple(
        total + jnp.sum(gpu_tile.beyond(plan, block.place, x, near), axis=1)
        for total, x in zip(far, of_biases, strict=True)
      )
    return sums, of_selection, far

  zeros = jnp.zeros((plan.block.query, plan.size), jnp.float32)
  carry: tuple = ((zeros,) * heads, None, None)
  if plan.selects:
    shape = (plan.block.query, plan.selection_size)
    carry = (carry[0], jnp.zeros(shape, jnp.float32), None)
  if grads.far is not None:
    zeros = jnp.zeros((plan.block.query,), jnp.float32)
    carry = (*carry[:2], (zeros,) * grads.far.shape[0])
  for first, end, near in key_blocks(plan, lists, i, size):
    carry = lax.fori_loop(first, end, functools.partial(add, near), carry)
  sums, of_selection, far = carry
  for head, of_query in enumerate(sums):
    grads.query[rows, head, :] = (plan.scale * of_query).astype(plan.dtype)
  if plan.selects:
    grads.selection_query[rows, :] = plan.selection_scale * of_selection
  if grads.far is not None:
    for number, x in enumerate(far):
      grads.far[number, i] = jnp.sum(x)
