"""The backward GPU kernels: one for keys and values, one for queries.

Both recompute a tile of F from the saved column sums of the selection scores,
and the weights from the saved log-sum-exp. F's gradient is summed over later
queries: a program of the kernel for keys and values goes through the blocks of
queries from the last one up, and saves these sums for the kernel for queries.
The sum over heads is taken last, over the programs' shares of the gradients of
selection: all that lies between is linear in it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from selective_t5x.attention.fused import product
from selective_t5x.attention.gpu import tile as gpu_tile
from selective_t5x.attention.gpu.blocks import Blocks, Inputs
from selective_t5x.attention.gpu.forward import Outputs, sums_spec
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
      tiles below each; only for the kernel for queries.
  """

  grad: Any
  lse: Any
  delta: Any
  sums: Any
  memory_grad: Any
  later: Any = None


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
  """

  query: Any
  selection_query: Any


def backward(
  plan: Plan, inputs: Inputs, sums, outputs: Outputs, grad, memory_grad
) -> Inputs:
  """Runs both kernels.

  Args:
    plan: the plan of the call.
    inputs: those of the forward kernel.
    sums: those of the forward kernel.
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
  key_grads = _key_grads(plan, inputs, saved)
  query_grads = _query_grads(
    plan, inputs, saved._replace(later=key_grads.later)
  )

  def over_programs(share):
    """Returns f32[B, P, N, E], summed over programs, as [B, N, G, E]."""
    if share is None:
      return None
    groups = (plan.batch, plan.groups, shared)
    total = jnp.sum(share.reshape(*groups, *share.shape[2:]), axis=2)
    return total.swapaxes(1, 2).astype(plan.dtype)

  return Inputs(
    query_grads.query,
    key_grads.key,
    key_grads.value,
    over_programs(query_grads.selection_query),
    over_programs(key_grads.selection_key),
  )


def _saved_specs(blocks: Blocks, saved: Saved) -> Saved:
  plan = blocks.plan
  rows = blocks.rows_of_heads()
  specs = Saved(
    blocks.of_heads(plan.size),
    rows,
    rows,
    sums_spec(blocks),
    blocks.of_program(plan.length),
    blocks.of_program(plan.query_blocks, plan.length),
  )
  return Saved(
    *(None if x is None else spec for x, spec in zip(saved, specs, strict=True))
  )


def _share(blocks: Blocks):
  """Returns the spec and shape of each program's share, f32[B, P, N, E]."""
  plan = blocks.plan
  if not plan.selects:
    return None
  return blocks.share(plan.length, plan.selection_size)


def _key_grads(plan: Plan, inputs: Inputs, saved: Saved) -> KeyGrads:
  blocks = Blocks(plan, plan.block.keys, plan.backward_heads)
  heads = blocks.of_heads(plan.size)
  like = jax.ShapeDtypeStruct(inputs.key.shape, plan.dtype)
  later = None
  if plan.selects:
    later = blocks.share(plan.query_blocks, plan.length)
  return blocks.call(
    _key_kernel,
    (inputs, saved),
    name='attention_keys',
    blocks=plan.length // plan.block.backward_key,
    in_specs=(blocks.inputs(), _saved_specs(blocks, saved)),
    out=KeyGrads((heads, like), (heads, like), _share(blocks), later),
  )


def _key_kernel(
  plan: Plan, heads: int, inputs: Inputs, saved: Saved, grads: KeyGrads
):
  """Goes up the tiles of one block of keys, which are [K, Q]."""
  j, size = pl.program_id(0), plan.block.backward_key
  columns = pl.ds(j * size, size)
  pairs = [
    (inputs.key[columns, head, :], inputs.value[columns, head, :])
    for head in range(heads)
  ]
  selecting = inputs.selection_key[columns, :] if plan.selects else None

  def add(step, carry):
    sums, of_selection, later = carry
    i = plan.query_blocks - 1 - step
    rows = pl.ds(i * plan.block.query, plan.block.query)
    select = None
    if plan.selects:
      grads.later[i, columns] = later
      select = (inputs.selection_query[rows, :], selecting)
    tile = _tile(plan, i, j, inputs, saved, select, 1)
    total = jnp.zeros((size, plan.block.query), jnp.float32)
    added = []
    for head, (key, value) in enumerate(pairs):
      query, grad = inputs.query[rows, head, :], saved.grad[rows, head, :]
      weights, logit_grads = gpu_tile.head_gradients(
        plan,
        tile,
        query,
        key,
        value,
        grad,
        saved.lse[head, rows],
        saved.delta[head, rows],
        1,
      )
      of_key, of_value = sums[head]
      of_value += product(weights.astype(plan.dtype), grad)
      of_key += product(logit_grads.astype(plan.dtype), query)
      added.append((of_key, of_value))
      total += logit_grads
    if plan.selects:
      selection, later = _selection(plan, tile, saved, rows, total, later, 1)
      of_selection += product(selection, select[0])
    return tuple(added), of_selection, later

  zeros = jnp.zeros((size, plan.size), jnp.float32)
  carry: tuple = (((zeros, zeros),) * heads, None, None)
  if plan.selects:
    carry = (
      carry[0],
      jnp.zeros((size, plan.selection_size), jnp.float32),
      jnp.zeros((size,), jnp.float32),
    )
  steps = plan.query_blocks - plan.first_query_block(j, size)
  sums, of_selection, _ = lax.fori_loop(0, steps, add, carry)
  for head, (of_key, of_value) in enumerate(sums):
    grads.key[columns, head, :] = (plan.scale * of_key).astype(plan.dtype)
    grads.value[columns, head, :] = of_value.astype(plan.dtype)
  if plan.selects:
    grads.selection_key[columns, :] = of_selection


def _query_grads(plan: Plan, inputs: Inputs, saved: Saved) -> QueryGrads:
  blocks = Blocks(plan, plan.block.queries, plan.backward_heads)
  like = jax.ShapeDtypeStruct(inputs.query.shape, plan.dtype)
  return blocks.call(
    _query_kernel,
    (inputs, saved),
    name='attention_queries',
    blocks=plan.query_blocks,
    in_specs=(blocks.inputs(), _saved_specs(blocks, saved)),
    out=QueryGrads((blocks.of_heads(plan.size), like), _share(blocks)),
  )


def _query_kernel(
  plan: Plan, heads: int, inputs: Inputs, saved: Saved, grads: QueryGrads
):
  """Goes along the tiles of one block of queries, which are [Q, K]."""
  # The last blocks have most tiles: they start first.
  i = plan.query_blocks - 1 - pl.program_id(0)
  size = plan.block.backward_key
  rows = pl.ds(i * plan.block.query, plan.block.query)
  of_rows = [
    (
      inputs.query[rows, head, :],
      saved.grad[rows, head, :],
      saved.lse[head, rows],
      saved.delta[head, rows],
    )
    for head in range(heads)
  ]
  selecting = inputs.selection_query[rows, :] if plan.selects else None

  def add(j, carry):
    sums, of_selection = carry
    columns = pl.ds(j * size, size)
    select = None
    if plan.selects:
      select = (selecting, inputs.selection_key[columns, :])
    tile = _tile(plan, i, j, inputs, saved, select, 0)
    total = jnp.zeros((plan.block.query, size), jnp.float32)
    added = []
    for head, (query, grad, lse, delta) in enumerate(of_rows):
      key, value = inputs.key[columns, head, :], inputs.value[columns, head, :]
      _, logit_grads = gpu_tile.head_gradients(
        plan, tile, query, key, value, grad, lse, delta, 0
      )
      added.append(sums[head] + product(logit_grads.astype(plan.dtype), key))
      total += logit_grads
    if plan.selects:
      later = saved.later[i, columns]
      selection, _ = _selection(plan, tile, saved, rows, total, later, 0)
      of_selection += product(selection, select[1])
    return tuple(added), of_selection

  zeros = jnp.zeros((plan.block.query, plan.size), jnp.float32)
  of_selection = None
  if plan.selects:
    shape = (plan.block.query, plan.selection_size)
    of_selection = jnp.zeros(shape, jnp.float32)
  sums, of_selection = lax.fori_loop(
    0, plan.key_blocks_seen(i, size), add, ((zeros,) * heads, of_selection)
  )
  for head, of_query in enumerate(sums):
    grads.query[rows, head, :] = (plan.scale * of_query).astype(plan.dtype)
  if plan.selects:
    grads.selection_query[rows, :] = of_selection


def _tile(plan, i, j, inputs, saved, select, query_axis):
  queries, keys = plan.block.query, plan.block.backward_key
  rows, columns = pl.ds(i * queries, queries), pl.ds(j * keys, keys)
  place = gpu_tile.Place(
    i * queries,
    j * keys,
    queries,
    keys,
    inputs.start[rows] if plan.packed else None,
    query_axis,
  )
  sums = saved.sums[i, columns] if plan.selects else None
  return gpu_tile.make_tile(plan, place, select, sums)


def _selection(plan, tile, saved, rows, logit_grads, later, query_axis):
  memory_grad = None if saved.memory_grad is None else saved.memory_grad[rows]
  grad, later = gpu_tile.selection_gradient(
    plan, tile, logit_grads, memory_grad, later, query_axis
  )
  return grad.astype(plan.dtype), later
