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

No N x N array is materialised. Source: arXiv 2410.02703, section 3, for F, and
Dao, arXiv 2307.08691, for attention in tiles.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from selective_t5x.attention import checks, derivatives, fused, live_keys, mesh
from selective_t5x.attention.distance_bias import DistanceBias
from selective_t5x.attention.limits import limits
from selective_t5x.attention.selection import ALL, Constraints, Selection
from selective_t5x.attention.tpu import backward as pallas_backward
from selective_t5x.attention.tpu import forward as pallas_forward
from selective_t5x.attention.tpu.distances import Strips
from selective_t5x.attention.tpu.forward import Inputs
from selective_t5x.attention.tpu.plan import (
  BlockSizes,
  Plan,
  heads_a_program,
  padded_length,
)

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
    forget_below: tiles whose keys are all dead are left out.
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
  eps = live_keys.lost_weight(forget_below, value.dtype)
  if selection is not None and eps:
    by_distance = None
    if isinstance(bias, DistanceBias):
      by_distance = bias.within(length, causal=True)
    inputs = inputs._replace(
      limits=limits(
        inputs.query,
        inputs.key,
        None if inputs.start is None else inputs.start[:, 0, :, 0],
        by_distance,
        groups=selection.query.shape[2],
        block=block.query,
        scale=scale,
        forget_below=eps,
        memory_tau=memory_tau,
      )
    )

  def run(inputs):
    plan = _plan(
      inputs,
      block,
      (strips, own_strips),
      selection,
      scale,
      memory_tau,
      interpret=interpret,
    )
    out, memory = _attention(plan, inputs)
    if memory is not None:
      # All programs of a group have the same F.
      memory = memory[:, :: plan.programs_a_group]
    return (out,) if memory is None else (out, memory)

  split = mesh.split(batch, heads)
  if split is None:
    out, *memory = run(inputs)
  else:
    # Each shard of the heads has its own selection heads, a copy where several
    # shards share one.
    if selection is not None:
      groups = selection.query.shape[2]
      copies = math.lcm(groups, split.shards) // groups
      inputs = inputs._replace(
        selection_query=jnp.repeat(inputs.selection_query, copies, axis=1),
        selection_key=jnp.repeat(inputs.selection_key, copies, axis=1),
      )
      if inputs.limits is not None and groups > 1:
        inputs = inputs._replace(
          limits=jnp.repeat(inputs.limits, copies, axis=1)
        )
      if own_strips is not None and own_strips.heads > 1:
        inputs = inputs._replace(
          selection_bias=jnp.repeat(inputs.selection_bias, copies, axis=1)
        )
    results = (True,) if memory_tau is None else (True, True)
    out, *memory = split.run(run, inputs, results)
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


def _plan(
  inputs, block, strips, selection, scale, memory_tau, *, interpret
) -> Plan:
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
  shared = heads_a_program(
    heads // groups, block, size, selection_size, dtype, bias, selection_bias
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
    forgets=inputs.limits is not None,
    interpret=interpret,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan: Plan, inputs: Inputs):
  """Returns out, [B, H, N, D], and M, f32[B, P, N, 1] or None."""
  outputs = pallas_forward.forward(plan, inputs)
  return outputs.out, outputs.memory


def _attention_fwd(plan, inputs):
  forward = functools.partial(pallas_forward.forward, plan)
  outputs = derivatives.once(forward, 'pallas_tpu')(inputs)
  return (outputs.out, outputs.memory), (inputs, outputs)


def _attention_bwd(plan, saved, grads):
  backward = functools.partial(pallas_backward.backward, plan)
  return (derivatives.once(backward, 'pallas_tpu')(*saved, *grads),)


_attention.defvjp(_attention_fwd, _attention_bwd)
