"""The backward TPU kernels: one for keys and values, one for queries.

Both recompute a tile of F from the saved column sums of the selection scores,
and the weights from the saved log-sum-exp. F's gradient is summed over later
queries: the kernel for keys and values goes through the rows of tiles from the
last one up, and saves these sums for the kernel for queries.

Listed keys (`reads`) come first: a key is listed for the queries after its own
span, so the sum over these is what the tiles in place start from.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from selective_t5x.attention.fused import product
from selective_t5x.attention.tpu import lists, recompute
from selective_t5x.attention.tpu import tile as pallas_tile
from selective_t5x.attention.tpu.blocks import KEY, QUERY, Blocks, Step
from selective_t5x.attention.tpu.forward import (
  Inputs,
  Outputs,
  input_specs,
  row_blocks,
)
from selective_t5x.attention.tpu.live_blocks import LiveBlocks
from selective_t5x.attention.tpu.plan import Plan
from selective_t5x.attention.tpu.reads import Reads, counted
from selective_t5x.attention.tpu.recompute import Saved


class KeyGrads(NamedTuple):
  """Results of the kernel for keys and values; N is C for listed keys.

  Attributes:
    key: [B, H, N, D].
    value: [B, H, N, D].
    selection_key: f32[B, P, N, E], the share of each program.
    later: see recompute.Saved.
    total: f32[B, P, 1, N], F's gradient summed over all queries; None unless
      the keys are listed ones.
  """

  key: Any
  value: Any
  selection_key: Any
  later: Any
  total: Any = None


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
  plan: Plan,
  inputs: Inputs,
  outputs: Outputs,
  reads: Reads | None,
  grad,
  memory_grad,
) -> Inputs:
  """Runs the kernels.

  Args:
    plan: the plan of the call.
    inputs: those of the forward kernel.
    outputs: those of the forward kernel.
    reads: what it read; None where no key dies.
    grad: [B, H, N, D], the cotangent of the output.
    memory_grad: f32[B, P, N, 1], the cotangent of M; None without it.

  Returns:
    The gradients of the inputs; the others have none.
  """
  delta = jnp.sum(
    outputs.out.astype(jnp.float32) * grad.astype(jnp.float32), axis=-1
  )
  # [B, H, N] to [B, P, N, heads of a program].
  delta = delta.reshape(
    plan.batch, plan.programs, plan.block.heads, plan.length
  ).swapaxes(2, 3)
  saved = Saved(grad, outputs.lse, delta, memory_grad)
  if reads is None:
    inputs = inputs._replace(sums=outputs.sums)
  key_grads, of_list = _all_key_grads(plan, inputs, saved, reads)
  query_grads = _query_grads(
    plan,
    inputs,
    saved._replace(
      later=key_grads.later, later_listed=of_list and of_list.later
    ),
    reads,
  )

  def over_programs(share):
    if share is None:
      return None
    groups = (plan.batch, plan.groups, plan.programs_a_group)
    return jnp.sum(share.reshape(*groups, *share.shape[2:]), axis=2)

  def of_keys(grads):
    return grads.key, grads.value, over_programs(grads.selection_key)

  key, value, selection_key = of_keys(key_grads)
  if of_list is not None:
    key, value, selection_key = lists.added(
      plan, reads, (key, value, selection_key), of_keys(of_list)
    )
  selection_query = over_programs(query_grads.selection_query)
  selects = plan.selects
  return Inputs(
    query_grads.query,
    key,
    value,
    selection_query.astype(plan.dtype) if selects else None,
    selection_key.astype(plan.dtype) if selects else None,
    bias=_of_heads(plan.bias, query_grads.bias),
    selection_bias=_of_heads(plan.selection_bias, query_grads.selection_bias),
  )


def _all_key_grads(plan, inputs, saved, reads):
  """Returns KeyGrads in place, and those of listed keys or None."""
  if reads is None:
    return _key_grads(plan, inputs, saved, Blocks(plan, KEY)), None
  costs = counted(plan, reads)
  blocks = LiveBlocks(plan, KEY, reads.keys, costs.keys)
  listed = inputs.listed
  if listed is None:
    return _key_grads(plan, inputs, saved, blocks), None
  of_list = _key_grads(
    plan,
    inputs._replace(listed=None, **listed._asdict()),
    saved,
    LiveBlocks(plan, KEY, reads.listed, costs.listed, listed=True),
  )
  none = jnp.zeros((plan.batch, plan.programs, plan.length), jnp.float32)
  (after,) = lists.added(plan, reads, (none,), (of_list.total[:, :, 0],))
  in_place = _key_grads(
    plan,
    inputs._replace(listed=None),
    saved._replace(after=after[:, :, None]),
    blocks,
  )
  return in_place, of_list


def _of_heads(strips, shares):
  """Sums f32[B, P, S, heads, W] for the strips' [1, H or 1, S, 1, W]."""
  if strips is None:
    return None
  heads = jnp.sum(shares, axis=0).swapaxes(1, 2)
  heads = heads.reshape(strips.heads, -1, strips.count, strips.width)
  return jnp.sum(heads, axis=1)[None, :, :, None]


def _like(x):
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _key_grads(
  plan: Plan, inputs: Inputs, saved: Saved, blocks: Blocks
) -> KeyGrads:
  """Returns the gradients of the keys of the inputs; `blocks` go by them."""
  tile = pltpu.VMEM((plan.block.heads, plan.block.key, plan.size), jnp.float32)
  later = pltpu.VMEM((1, plan.block.key), jnp.float32)
  length = inputs.key.shape[2]
  rows = (plan.batch, plan.programs)

  def float32(*shape):
    return jax.ShapeDtypeStruct((*rows, *shape, 1, length), jnp.float32)

  return blocks.call(
    _key_kernel,
    (inputs, saved),
    name='attention_keys',
    in_specs=(
      input_specs(blocks, inputs),
      recompute.saved_specs(blocks, saved),
    ),
    out=KeyGrads(
      (blocks.heads(KEY), _like(inputs.key)),
      (blocks.heads(KEY), _like(inputs.value)),
      recompute.share(blocks, KEY, length),
      (blocks.sums(), float32(plan.query_blocks)) if plan.selects else None,
      None if inputs.position is None else (blocks.columns(), float32()),
    ),
    scratch=KeyGrads(tile, tile, None, later if plan.selects else None),
  )


def _key_kernel(
  plan: Plan,
  step: Step,
  inputs: Inputs,
  saved: Saved,
  grads: KeyGrads,
  scratch: KeyGrads,
):
  """Sums over the queries, from the last up; `scratch` is in float32."""

  @pl.when(step.first)
  def _():
    scratch.key[...] = jnp.zeros_like(scratch.key)
    scratch.value[...] = jnp.zeros_like(scratch.value)
    if plan.selects:
      grads.selection_key[...] = jnp.zeros_like(grads.selection_key)
      scratch.later[...] = (
        jnp.zeros_like(scratch.later)
        if saved.after is None
        else saved.after[...]
      )

  @pl.when(step.runs)
  def _():
    tile = recompute.tile_of(plan, step, inputs)
    total = jnp.zeros((plan.block.query, plan.block.key), jnp.float32)
    for head in range(plan.block.heads):
      weights, logit_grads = recompute.head_gradients(
        plan, tile, inputs, saved, head
      )
      scratch.value[head] += product(
        weights.astype(plan.dtype), saved.grad[head], transpose_a=True
      )
      scratch.key[head] += plan.scale * product(
        logit_grads.astype(plan.dtype), inputs.query[head], transpose_a=True
      )
      total += logit_grads
    if plan.selects:
      grads.later[...] = scratch.later[...]
      selection, scratch.later[...] = recompute.selection_gradient(
        plan, tile, saved, total, scratch.later[...]
      )
      grads.selection_key[...] += product(
        recompute.of_products(plan, selection),
        inputs.selection_query[...],
        transpose_a=True,
      )

  @pl.when(step.last)
  def _():
    grads.key[...] = scratch.key[...].astype(plan.dtype)
    grads.value[...] = scratch.value[...].astype(plan.dtype)
    if grads.total is not None:
      grads.total[...] = scratch.later[...]


def _query_grads(
  plan: Plan, inputs: Inputs, saved: Saved, reads: Reads | None
) -> QueryGrads:
  blocks = row_blocks(plan, reads)

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
    in_specs=(
      input_specs(blocks, inputs),
      recompute.saved_specs(blocks, saved),
    ),
    out=QueryGrads(
      (blocks.heads(QUERY), _like(inputs.query)),
      recompute.share(blocks, QUERY, plan.length),
      strips(plan.bias, plan.heads_with_strips),
      strips(plan.selection_bias, 1),
    ),
    scratch=pltpu.VMEM(
      (plan.block.heads, plan.block.query, plan.size), jnp.float32
    ),
  )


def _query_kernel(
  plan: Plan,
  step: Step,
  inputs: Inputs,
  saved: Saved,
  grads: QueryGrads,
  scratch,
):
  """Sums over the keys; `scratch` is f32[heads, Q, D]."""
  i, j = step.i, step.j

  @pl.when((i == 0) & step.first)
  def _():
    for strips in (grads.bias, grads.selection_bias):
      if strips is not None:
        strips[...] = jnp.zeros_like(strips)

  @pl.when(step.first)
  def _():
    scratch[...] = jnp.zeros_like(scratch)
    if plan.selects:
      grads.selection_query[...] = jnp.zeros_like(grads.selection_query)

  @pl.when(step.runs)
  def _():
    keys = pallas_tile.of_step(step, inputs)
    tile = recompute.tile_of(plan, step, keys)
    total = jnp.zeros((plan.block.query, plan.block.key), jnp.float32)
    for head in range(plan.block.heads):
      _, logit_grads = recompute.head_gradients(plan, tile, keys, saved, head)
      scratch[head] += plan.scale * product(
        logit_grads.astype(plan.dtype), keys.key[head]
      )
      total += logit_grads
      if plan.heads_with_strips > 1:
        _add_strip(plan.bias, i, j, grads.bias, head, logit_grads)
    if plan.selects:
      later = pallas_tile.either(step, saved.later, saved.later_listed)
      selection, _ = recompute.selection_gradient(
        plan, tile, saved, total, later[...]
      )
      grads.selection_query[...] += product(
        recompute.of_products(plan, selection), keys.selection_key[...]
      )
      if plan.selection_bias is not None:
        _add_strip(
          plan.selection_bias, i, j, grads.selection_bias, 0, selection
        )
    if plan.bias is not None and plan.heads_with_strips == 1:
      _add_strip(plan.bias, i, j, grads.bias, 0, total)

  @pl.when(step.last)
  def _():
    grads.query[...] = scratch[...].astype(plan.dtype)


def _add_strip(strips, i, j, total, head, grad):
  """Adds the gradient of a tile's biases, f32[Q, K], to that of its strip."""
  row = strips.gradient(grad, strips.far(i, j))
  total[strips.number(i, j), head : head + 1] += row
