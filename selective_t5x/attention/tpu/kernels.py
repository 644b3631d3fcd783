"""Selective attention on TPUs, at about the cost of fused plain attention.

F is a running sum over earlier queries, so the kernels run the rows of tiles in
order and keep c, f32[N], the column sums of the selection scores so far. In a
tile of queries and keys:

  logits of selection = scale * <selection query, selection key>, the products
    of the inputs' dtype summed in float32; S clips them;
  F = c + the sum of the rows of S above (a triangular product); c adds them;
  all heads of the program then attend with this tile of F.

The forward kernel saves the log-sum-exp, f32[B, H, N], and c above each row of
tiles, f32[B, N, N / block], from which the backward kernels recompute any tile
of F. With A the logits and g the cotangent of M, dF = -(the sum over heads of
dA), less g / tau where M counts the key. It is summed over later queries, from
the last row of tiles up; the sum is the gradient of the selection logits where
they were positive.

Where keys die, a kernel computes c alone first, and the others read the keys
that live (`reads`).

No N x N array is materialised. Source: arXiv 2410.02703, section 3, for F, and
Dao, arXiv 2307.08691, for attention in tiles.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from selective_t5x.attention import checks, derivatives, fused, live_keys, mesh
from selective_t5x.attention.distance_bias import DistanceBias
from selective_t5x.attention.limits import limits
from selective_t5x.attention.selection import ALL, Constraints, Selection
from selective_t5x.attention.tpu import backward as pallas_backward
from selective_t5x.attention.tpu import forward as pallas_forward
from selective_t5x.attention.tpu import lists, reads
from selective_t5x.attention.tpu.column_sums import column_sums
from selective_t5x.attention.tpu.distances import Strips
from selective_t5x.attention.tpu.forward import Inputs
from selective_t5x.attention.tpu.plan import (
  SCALAR_MEMORY,
  BlockSizes,
  Plan,
  heads_a_program,
  listed_tiles,
  padded_length,
  table_bytes,
)
from selective_t5x.attention.tpu.reads import Reads

__all__ = ['BlockSizes', 'attention', 'unsupported']


def unsupported(
  dtype,
  *,
  bias: bool,
  constraints: Constraints = ALL,
  interpret: bool = False,
) -> str | None:
  """Returns why `attention` cannot run here, or None if it can.

  Args:
    dtype: the dtype of the queries.
    bias: whether the logits or the selection have one that is an array.
    constraints: those of the selection.
    interpret: as in `attention`.
  """
  lack = fused.unsupported(dtype, bias=bias, constraints=constraints)
  if lack:
    return lack
  if not interpret and mesh.platform() != 'tpu':
    return f'it needs a TPU, and programs go to a {mesh.platform()}'
  return None


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  selection: Selection | None,
  scale: float,
  bias: jax.Array | DistanceBias | None = None,
  segment_ids: jax.Array | None = None,
  memory_tau: float | None = None,
  forget_below: float | None = 0.0,
  block_sizes: BlockSizes | None = None,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
  """Selective attention by fused kernels, forward and backward.

  Under a mesh (`with mesh:` or `jax.set_mesh`) the batch is split over the axes
  'replica' and 'data' and the heads over 'model', see `mesh`.

  Arguments and results are those of `blocked.attention`, but for:
    query: bfloat16 or float32.
    bias: None or a DistanceBias; so is that of the selection.
    forget_below: dead keys are not read, see `reads`. With biases keys are not
      listed: a tile is left out where all its keys are dead. Where the tables
      of `reads` exceed the scalar memory, all keys are read.
    block_sizes: None for the default.
    interpret: whether to run in Pallas' interpreter, on any platform and very
      slowly.

  Raises:
    ValueError: if `unsupported` gives a reason, block_sizes do not fit, G does
      not divide H, or there is memory_tau without selection.
  """
  selection_bias = None if selection is None else selection.bias
  why = unsupported(
    query.dtype,
    bias=fused.is_array(bias) or fused.is_array(selection_bias),
    constraints=ALL if selection is None else selection.constraints,
    interpret=interpret,
  )
  if why:
    raise ValueError(f'pallas_tpu cannot run here: {why}')
  batch, length, heads, _ = query.shape
  call = fused.call(
    'pallas_tpu',
    query,
    key,
    value,
    selection=selection,
    segment_ids=segment_ids,
    memory_tau=memory_tau,
  )
  padded, block = padded_length(length, block_sizes or BlockSizes())
  inputs = Inputs(*(_head_major(x, padded, query.dtype) for x in call.tensors))
  if call.start is not None:
    inputs = inputs._replace(start=_padded_start(call.start, padded))
  strips, of_heads = _strips(bias, query, block, padded)
  selecting = query if selection is None else selection.query
  own_strips, of_selection = _strips(selection_bias, selecting, block, padded)
  inputs = inputs._replace(bias=of_heads, selection_bias=of_selection)
  by_distance = dead_above = None
  if isinstance(bias, DistanceBias):
    by_distance = bias.within(length, causal=True)
  eps = live_keys.lost_weight(forget_below, value.dtype)
  if selection is not None and eps:
    dead_above = limits(
      inputs.query,
      inputs.key,
      None if call.start is None else inputs.start[:, 0, :, 0],
      by_distance,
      groups=selection.query.shape[2],
      block=block.query,
      scale=scale,
      forget_below=eps,
      memory_tau=memory_tau,
    )

  def run(operands):
    inputs, dead_above = operands
    plan = plan_of(
      inputs,
      block,
      (strips, own_strips),
      selection,
      scale,
      memory_tau,
      forgets=dead_above is not None,
      interpret=interpret,
    )
    out, memory = _attention(plan, inputs, dead_above if plan.forgets else None)
    if memory is not None:
      # All programs of a group have the same F.
      memory = memory[:, :: plan.programs_a_group]
    return (out,) if memory is None else (out, memory)

  split = mesh.split(batch, heads)
  if split is None:
    out, *memory = run((inputs, dead_above))
  else:
    inputs, dead_above = _copied(inputs, dead_above, split.shards)
    results = (True,) if memory_tau is None else (True, True)
    out, *memory = split.run(run, (inputs, dead_above), results)
  out = out.swapaxes(1, 2)[:, :length].astype(value.dtype)
  if memory_tau is None:
    return call.results(out, None)
  return call.results(out, jnp.mean(memory[0], axis=1)[:, :length, 0])


def _strips(bias, query, block, padded):
  """Returns the Strips of a bias and their numbers; two None without one.

  Args:
    bias: a DistanceBias or None.
    query: [B, N, H or G, D], whose bias it is.
    block: the tiles.
    padded: N, whole tiles.
  """
  if bias is None:
    return None, None
  checks.bias_shape(bias, query, query, by_distance=True)
  bias = bias.within(query.shape[1], causal=True)
  bias = derivatives.reverse_mode_alone(bias, 'pallas_tpu')
  heads = bias.values.shape[0]
  strips = Strips(heads, bias.behind, block.query, block.key, padded)
  return strips, strips.of_values(bias)


def _copied(inputs, dead_above, shards):
  """Copies what belongs to selection heads, so that shards have their own."""
  if inputs.selection_query is None:
    return inputs, dead_above
  groups = inputs.selection_query.shape[1]
  copies = math.lcm(groups, shards) // groups

  def copied(x):
    # An array of one head is for all shards.
    return x if x is None or x.shape[1] == 1 else jnp.repeat(x, copies, axis=1)

  return inputs._replace(
    selection_query=jnp.repeat(inputs.selection_query, copies, axis=1),
    selection_key=jnp.repeat(inputs.selection_key, copies, axis=1),
    selection_bias=copied(inputs.selection_bias),
  ), copied(dead_above)


def _head_major(x, length, dtype):
  """Returns [B, N, H, D] as [B, H, length, D]."""
  x = jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))
  return x.swapaxes(1, 2).astype(dtype)


def _padded_start(start, length):
  """Returns i32[B, N] as [B, 1, length, 1]; padding starts after the row."""
  start = jnp.pad(
    start, ((0, 0), (0, length - start.shape[1])), constant_values=length
  )
  return start[:, None, :, None]


def plan_of(
  inputs,
  block,
  strips,
  selection,
  scale,
  memory_tau,
  *,
  forgets,
  interpret,
) -> Plan:
  """Returns the plan of a call.

  Args:
    inputs: those of the kernels, or their shapes.
    block: the tiles.
    strips: those of the heads' biases and of the selection's, or two None.
    selection: as in `attention`.
    scale: multiplies the logits.
    memory_tau: as in `attention`.
    forgets: whether dead keys are known.
    interpret: as in `attention`.
  """
  batch, heads, length, size = inputs.query.shape
  groups, selection_size = 1, None
  if selection is not None:
    _, groups, _, selection_size = inputs.selection_query.shape
  dtype = inputs.query.dtype
  # On a mesh each shard has the strips of its own heads.
  bias, selection_bias = (
    kind and dataclasses.replace(kind, heads=of_heads.shape[1])
    for kind, of_heads in zip(
      strips, (inputs.bias, inputs.selection_bias), strict=True
    )
  )
  if forgets and table_bytes(batch, groups, length, block) > SCALAR_MEMORY:
    forgets = False
    live_keys.log_that_none_is_dropped(
      'the tables of what the TPU kernels read exceed the scalar memory'
    )
  # Biases are for keys in place.
  lists = bias is None and selection_bias is None and forgets
  lists = listed_tiles(length, block) if lists else 0
  shared = heads_a_program(
    heads // groups,
    block,
    size,
    selection_size,
    dtype,
    bias,
    selection_bias,
    lists,
  )
  return Plan(
    batch=batch,
    heads=heads,
    groups=groups,
    length=length,
    size=size,
    selection_size=selection_size,
    block=BlockSizes(block.query, block.key, shared),
    scale=float(scale),
    selection_scale=None if selection is None else float(selection.scale),
    memory_tau=memory_tau,
    packed=inputs.start is not None,
    dtype=dtype,
    bias=bias,
    selection_bias=selection_bias,
    forgets=forgets,
    lists=lists,
    interpret=interpret,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan: Plan, inputs: Inputs, dead_above):
  """Returns out, [B, H, N, D], and M, f32[B, P, N, 1] or None."""
  return _forward(plan, inputs, dead_above)[0]


def _forward(plan, inputs, dead_above):
  live = None
  if plan.forgets:
    sums = column_sums(plan, inputs)
    live = Live(sums, reads.reads(plan, reads.deaths(plan, sums, dead_above)))
  outputs = pallas_forward.forward(
    plan, read(plan, inputs, live), live and live.reads
  )
  return (outputs.out, outputs.memory), (inputs, live, outputs)


class Live(NamedTuple):
  """What is known about live keys before the forward kernel.

  Attributes:
    sums: f32[B, G, T, 1, N], see `Inputs`.
    reads: what the kernels read.
  """

  sums: jax.Array
  reads: Reads


def read(plan: Plan, inputs: Inputs, live: Live | None) -> Inputs:
  """Returns the inputs with the listed keys."""
  if live is None:
    return inputs
  inputs = inputs._replace(sums=live.sums)
  return inputs._replace(listed=lists.listed(plan, live.reads, inputs))


def _attention_fwd(plan, inputs, dead_above):
  forward = functools.partial(_forward, plan)
  return derivatives.once(forward, 'pallas_tpu')(inputs, dead_above)


def _attention_bwd(plan, saved, grads):
  def backward(saved, grads):
    # The list is copied again, rather than kept from the forward pass.
    inputs, live, outputs = jax.lax.optimization_barrier(saved)
    return pallas_backward.backward(
      plan, read(plan, inputs, live), outputs, live and live.reads, *grads
    )

  return derivatives.once(backward, 'pallas_tpu')(saved, grads), None


_attention.defvjp(_attention_fwd, _attention_bwd)
