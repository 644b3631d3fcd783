"""The backward TPU kernels: one for keys and values, one for queries.

Both recompute a tile of F from the saved column sums of the selection scores,
and the weights from the saved log-sum-exp. F's gradient is summed over later
queries: the kernel for keys and values goes through the rows of tiles from the
last one up, and saves these sums for the kernel for queries.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from selective_t5x.attention.fused import product
from selective_t5x.attention.tpu import tile as pallas_tile
from selective_t5x.attention.tpu.blocks import KEY, QUERY, Blocks
from selective_t5x.attention.tpu.forward import Inputs, Outputs, input_specs
from selective_t5x.attention.tpu.plan import Plan


class Saved(NamedTuple):
  """Arrays, or their blocks, that the kernels read beside the inputs.

  Attributes:
    grad: [B, H, N, D], the cotangent of the output.
    lse: f32[B, P, N, heads of a program], see forward.Outputs.
    delta: f32[B, P, N, heads of a program], the product of the output and its
      cotangent.
    sums: f32[B, P, N / query block, 1, N], see forward.Outputs.
    memory_grad: f32[B, P, N, 1], the cotangent of M; None without M.
    later: f32[B, P, N / query block, 1, N], F's gradient summed over the rows
      of tiles below each; only for the kernel for queries.
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
    key: [B, H, N, D].
    value: [B, H, N, D].
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
    query: [B, H, N, D].
    selection_query: f32[B, P, N, E], the share of each program.
    bias: f32[B, P, S, heads, W], the share of each program in the gradient of
      the strips of its heads, or of the one strip that all heads share; None
      without biases.
    selection_bias: f32[B, P, S, 1, W]; None without biases of selection.
  """

  query: Any
  selection_query: Any
  bias: Any
  selection_bias: Any


def backward(
  plan: Plan, inputs: Inputs, outputs: Outputs, grad, memory_grad
) -> Inputs:
  """Runs both kernels.

  Args:
    plan: the plan of the call.
    inputs: those of the forward kernel.
    outputs: those of the forward kernel.
    grad: [B, H, N, D], the cotangent of the output.
    memory_grad: f32[B, P, N, 1], the cotangent of M; None without it.

  Returns:
    The gradients of the inputs; start has none.
  """
  delta = jnp.sum(
    outputs.out.astype(jnp.float32) * grad.astype(jnp.float32), axis=-1
  )
  # [B, H, N] to [B, P, N, heads of a program].
  delta = delta.reshape(
    plan.batch, plan.programs, plan.block.heads, plan.length
  ).swapaxes(2, 3)
  saved = Saved(grad, outputs.lse, delta, outputs.sums, memory_grad)
  key_grads = _key_grads(plan, inputs, saved)
  query_grads = _query_grads(
    plan, inputs, saved._replace(later=key_grads.later)
  )

  def over_programs(share):
    if share is None:
      return None
    groups = (plan.batch, plan.groups, plan.programs_a_group)
    total = jnp.sum(share.reshape(*groups, *share.shape[2:]), axis=2)
    return total.astype(plan.dtype)

  return Inputs(
    query_grads.query,
    key_grads.key,
    key_grads.value,
    over_programs(query_grads.selection_query),
    over_programs(key_grads.selection_key),
    bias=_of_heads(plan.bias, query_grads.bias),
    selection_bias=_of_heads(plan.selection_bias, query_grads.selection_bias),
  )


def _of_heads(strips, shares):
  """Sums f32[B, P, S, heads, W] for the strips' [1, H or 1, S, 1, W]."""
  if strips is None:
    return None
  heads = jnp.sum(shares, axis=0).swapaxes(1, 2)
  heads = heads.reshape(strips.heads, -1, strips.count, strips.width)
  return jnp.sum(heads, axis=1)[None, :, :, None]


def _saved_specs(blocks: Blocks, saved: Saved) -> Saved:
  rows = blocks.program(QUERY, blocks.plan.block.heads)
  specs = Saved(
    blocks.heads(QUERY),
    rows,
    rows,
    blocks.sums(),
    blocks.program(QUERY, 1),
    blocks.sums(),
  )
  return Saved(
    *(None if x is None else spec for x, spec in zip(saved, specs, strict=True))
  )


def _like(x):
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _share(blocks: Blocks, axis: int):
  """Returns the spec and shape of each program's share, f32[B, P, N, E]."""
  plan = blocks.plan
  if not plan.selects:
    return None
  shape = (plan.batch, plan.programs, plan.length, plan.selection_size)
  spec = blocks.program(axis, plan.selection_size)
  return spec, jax.ShapeDtypeStruct(shape, jnp.float32)


def _key_grads(plan: Plan, inputs: Inputs, saved: Saved) -> KeyGrads:
  blocks = Blocks(plan, outer=KEY)
  tile = pltpu.VMEM((plan.block.heads, plan.block.key, plan.size), jnp.float32)
  later = pltpu.VMEM((1, plan.block.key), jnp.float32)
  return blocks.call(
    _key_kernel,
    (inputs, saved),
    name='attention_keys',
    in_specs=(input_specs(blocks), _saved_specs(blocks, saved)),
    out=KeyGrads(
      (blocks.heads(KEY), _like(inputs.key)),
      (blocks.heads(KEY), _like(inputs.value)),
      _share(blocks, KEY),
      (blocks.sums(), _like(saved.sums)) if plan.selects else None,
    ),
    scratch=KeyGrads(tile, tile, None, later if plan.selects else None),
  )


def _key_kernel(
  plan: Plan,
  blocks: Blocks,
  inputs: Inputs,
  saved: Saved,
  grads: KeyGrads,
  scratch: KeyGrads,
):
  """Sums over the queries, from the last up; `scratch` is in float32."""
  i, j = blocks.tile(pl.program_id(2), pl.program_id(3))

  @pl.when(i == plan.query_blocks - 1)
  def _():
    scratch.key[...] = jnp.zeros_like(scratch.key)
    scratch.value[...] = jnp.zeros_like(scratch.value)
    if plan.selects:
      grads.selection_key[...] = jnp.zeros_like(grads.selection_key)
      scratch.later[...] = jnp.zeros_like(scratch.later)

  @_when_needed(plan, i, j, inputs, saved)
  def _():
    tile = _tile(plan, i, j, inputs, saved)
    total = jnp.zeros((plan.block.query, plan.block.key), jnp.float32)
    for head in range(plan.block.heads):
      weights, logit_grads = _head(plan, tile, inputs, saved, head)
      scratch.value[head] += product(
        weights.astype(plan.dtype), saved.grad[head], transpose_a=True
      )
      scratch.key[head] += plan.scale * product(
        logit_grads.astype(plan.dtype), inputs.query[head], transpose_a=True
      )
      total += logit_grads
    if plan.selects:
      grads.later[...] = scratch.later[...]
      selection, scratch.later[...] = _selection(
        plan, tile, saved, total, scratch.later[...]
      )
      grads.selection_key[...] += product(
        _of_products(plan, selection),
        inputs.selection_query[...],
        transpose_a=True,
      )

  @pl.when(i == plan.first_query_block(j))
  def _():
    grads.key[...] = scratch.key[...].astype(plan.dtype)
    grads.value[...] = scratch.value[...].astype(plan.dtype)


def _query_grads(plan: Plan, inputs: Inputs, saved: Saved) -> QueryGrads:
  blocks = Blocks(plan, outer=QUERY)

  def strips(strips, heads):
    if strips is None:
      return None
    shape = (plan.batch, plan.programs, strips.count, heads, strips.width)
    return (
      blocks.strips(strips, heads),
      jax.ShapeDtypeStruct(shape, jnp.float32),
    )

  return blocks.call(
    _query_kernel,
    (inputs, saved),
    name='attention_queries',
    in_specs=(input_specs(blocks), _saved_specs(blocks, saved)),
    out=QueryGrads(
      (blocks.heads(QUERY), _like(inputs.query)),
      _share(blocks, QUERY),
      strips(plan.bias, plan.heads_with_strips),
      strips(plan.selection_bias, 1),
    ),
    scratch=pltpu.VMEM(
      (plan.block.heads, plan.block.query, plan.size), jnp.float32
    ),
  )


def _query_kernel(
  plan: Plan,
  blocks: Blocks,
  inputs: Inputs,
  saved: Saved,
  grads: QueryGrads,
  scratch,
):
  """Sums over the keys; `scratch` is f32[heads, Q, D]."""
  i, j = blocks.tile(pl.program_id(2), pl.program_id(3))

  @pl.when((i == 0) & (j == 0))
  def _():
    for strips in (grads.bias, grads.selection_bias):
      if strips is not None:
        strips[...] = jnp.zeros_like(strips)

  @pl.when(j == 0)
  def _():
    scratch[...] = jnp.zeros_like(scratch)
    if plan.selects:
      grads.selection_query[...] = jnp.zeros_like(grads.selection_query)

  @_when_needed(plan, i, j, inputs, saved)
  def _():
    tile = _tile(plan, i, j, inputs, saved)
    total = jnp.zeros((plan.block.query, plan.block.key), jnp.float32)
    for head in range(plan.block.heads):
      _, logit_grads = _head(plan, tile, inputs, saved, head)
      scratch[head] += plan.scale * product(
        logit_grads.astype(plan.dtype), inputs.key[head]
      )
      total += logit_grads
      if plan.heads_with_strips > 1:
        _add_strip(plan.bias, i, j, grads.bias, head, logit_grads)
    if plan.selects:
      selection, _ = _selection(plan, tile, saved, total, saved.later[...])
      grads.selection_query[...] += product(
        _of_products(plan, selection), inputs.selection_key[...]
      )
      if plan.selection_bias is not None:
        _add_strip(
          plan.selection_bias, i, j, grads.selection_bias, 0, selection
        )
    if plan.bias is not None and plan.heads_with_strips == 1:
      _add_strip(plan.bias, i, j, grads.bias, 0, total)

  @pl.when(j == plan.last_key_block(i))
  def _():
    grads.query[...] = scratch[...].astype(plan.dtype)


def _when_needed(plan, i, j, inputs, saved):
  """Returns a decorator that runs a function where a key is seen and alive."""

  def decorate(function):
    @pl.when(plan.runs(i, j))
    def _():
      sums = saved.sums[...] if plan.forgets else None
      pallas_tile.when_alive(plan, i, j, inputs, sums)(function)

  return decorate


def _tile(plan, i, j, inputs, saved):
  sums = saved.sums[...] if plan.selects else None
  return pallas_tile.make_tile(plan, i, j, inputs, sums)


def _head(plan, tile, inputs, saved, head):
  return pallas_tile.head_gradients(
    plan,
    tile,
    inputs,
    head,
    saved.grad[head],
    saved.lse[:, head : head + 1],
    saved.delta[:, head : head + 1],
  )


def _selection(plan, tile, saved, logit_grads, later):
  return pallas_tile.selection_gradient(
    plan,
    tile,
    logit_grads,
    None if saved.memory_grad is None else saved.memory_grad[...],
    later,
  )


def _of_products(plan, selection):
  """Turns gradients of selection logits into those of their products."""
  return (plan.selection_scale * selection).astype(plan.dtype)


def _add_strip(strips, i, j, total, head, grad):
  """Adds the gradient of a tile's biases, f32[Q, K], to that of its strip."""
  row = strips.gradient(grad, strips.far(i, j))
  total[strips.number(i, j), head : head + 1] += row
