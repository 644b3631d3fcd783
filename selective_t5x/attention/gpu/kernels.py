"""Selective attention on NVIDIA GPUs by fused kernels, in Pallas' Triton.

Five kernels, none of which materialises an N x N array:

  sums: the column sums of the selection scores S above each row of tiles, a
    running sum over the blocks of queries, f32[B, G, N / block, N];
  forward: for each block of queries, along its tiles: S of the tile, F = those
    sums + the sum of the rows of S above in the tile; then all heads of the
    program attend with this F. It saves the log-sum-exp, f32[B, H, N];
  keys: for each block of keys, from the last queries up: F and the weights
    again. With A the logits and g the cotangent of M, dF = -(the sum over heads
    of dA), less g / tau where M counts the key. Its sum over later queries is
    the gradient of the selection logits where they were positive; what comes
    from later blocks is carried and saved;
  queries: for each block of queries, with those saved sums;
  biases: the gradient of T5's biases, see `gpu.biases`.

Source: arXiv 2410.02703, section 3, for F, and Dao, arXiv 2307.08691, for
attention in tiles. `tpu.kernels` does the same in the order of a TPU's grid.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from selective_t5x.attention import derivatives, fused, live_keys, mesh
from selective_t5x.attention.distance_bias import DistanceBias
from selective_t5x.attention.gpu import backward as gpu_backward
from selective_t5x.attention.gpu import forward as gpu_forward
from selective_t5x.attention.gpu import live
from selective_t5x.attention.gpu.blocks import Inputs
from selective_t5x.attention.gpu.plan import (
  LARGEST_SIZE,
  BlockSizes,
  Plan,
  padded_length,
  padded_size,
  too_old,
)
from selective_t5x.attention.gpu.plan import block_sizes as tiles_of
from selective_t5x.attention.limits import limits as limits_of
from selective_t5x.attention.selection import ALL, Constraints, Selection

__all__ = ['BlockSizes', 'attention', 'unsupported']


def unsupported(
  dtype,
  *,
  bias: bool,
  constraints: Constraints = ALL,
  sizes: tuple[int, ...] = (),
  interpret: bool = False,
) -> str | None:
  """Returns why `attention` cannot run here, or None if it can.

  Args:
    dtype: the dtype of the queries.
    bias: whether the logits or the selection have one that is an array.
    constraints: those of the selection.
    sizes: D, and E with selection.
    interpret: as in `attention`.
  """
  lack = fused.unsupported(dtype, bias=bias, constraints=constraints)
  if lack:
    return lack
  if max(sizes, default=0) > LARGEST_SIZE:
    return (
      f'its kernels take heads of at most {LARGEST_SIZE} numbers, and one has '
      f'{max(sizes)}'
    )
  if interpret:
    return None
  if mesh.platform() != 'gpu':
    return f'it needs an NVIDIA GPU, and programs go to a {mesh.platform()}'
  if too_old(mesh.device_kind()):
    return f'it needs an Ampere GPU or a later one, not {mesh.device_kind()}'
  return None


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  selection: Selection | None,
  scale: float,
  bias: DistanceBias | None = None,
  segment_ids: jax.Array | None = None,
  memory_tau: float | None = None,
  forget_below: float | None = 0.0,
  block_sizes: BlockSizes | None = None,
  interpret: bool = False,
  forward: Callable[..., Any] = gpu_forward.forward,
) -> tuple[jax.Array, jax.Array | None]:
  """Selective attention by fused kernels, forward and backward, on one device.

  Arguments and results are those of `blocked.attention`, but for:
    query: bfloat16 or float32, D and E at most 128.
    bias: a DistanceBias with R distances, or None; that of selection likewise.
      It takes about 4 Q (R + 3 Q) bytes for each of the H and G heads, Q being
      `BlockSizes.query`. Its gradient takes about 4 Q (R + Q) bytes for each of
      H heads and P programs (`gpu.blocks`), for every 2,048 tokens of a row.
      There is no other array of it.
    forget_below: dead keys are not read, see `gpu.live`.
    block_sizes: None for those of the GPU, `plan.block_sizes`.
    interpret: whether to run in Pallas' interpreter, on any platform and very
      slowly.
    forward: the forward kernel, with the arguments and results of
      `gpu.forward.forward`.

  Raises:
    ValueError: if `unsupported` gives a reason, G does not divide H, or there
      is memory_tau without selection.
  """
  sizes: tuple[int, ...] = (query.shape[-1],)
  if selection is not None:
    sizes += (selection.query.shape[-1],)
  biases = (bias, None if selection is None else selection.bias)
  why = unsupported(
    query.dtype,
    bias=any(map(fused.is_array, biases)),
    constraints=ALL if selection is None else selection.constraints,
    sizes=sizes,
    interpret=interpret,
  )
  if why:
    raise ValueError(f'pallas_gpu cannot run here: {why}')
  length, size = query.shape[1], query.shape[3]
  call = fused.call(
    'pallas_gpu',
    query,
    key,
    value,
    selection=selection,
    segment_ids=segment_ids,
    memory_tau=memory_tau,
  )
  eps = live_keys.lost_weight(forget_below, value.dtype)
  block = block_sizes
  if block is None:
    kind = '' if interpret else mesh.device_kind()
    biased = any(x is not None for x in biases)
    block = tiles_of(
      kind, max(sizes), biased, live=selection is not None and eps > 0
    )
  padded = padded_length(length, block)
  inputs = Inputs(*(whole_tiles(x, padded, query.dtype) for x in call.tensors))
  if call.start is not None:
    start = jnp.pad(
      call.start, ((0, 0), (0, padded - length)), constant_values=padded
    )
    inputs = inputs._replace(start=start)
  groups = 0 if selection is None else selection.query.shape[2]
  inputs = inputs._replace(**_tables(*biases, length, query.shape[2], groups))
  plan = _plan(inputs, block, selection, scale, memory_tau, interpret=interpret)
  limits = _limits(plan, inputs, eps, length) if eps else None
  out, memory = attend(plan, forward, inputs, limits)
  out = out[:, :length, :, :size].astype(value.dtype)
  if memory is None:
    return call.results(out, None)
  return call.results(out, jnp.mean(memory, axis=1)[:, :length])


def whole_tiles(x, length, dtype):
  """Pads [B, N, H, D] with zeros to whole tiles of a power of two's size."""
  _, tokens, _, size = x.shape
  more = ((0, 0), (0, length - tokens), (0, 0), (0, padded_size(size) - size))
  return jnp.pad(x, more).astype(dtype)


def _tables(bias, selection_bias, length, heads, groups) -> dict[str, Any]:
  """Returns the biases of `Inputs`; none where there is none at all.

  Args:
    bias: a DistanceBias or None, for no bias.
    selection_bias: likewise.
    length: N.
    heads: H.
    groups: G; 0 without selection.
  """
  occurring = [
    None if x is None else x.within(length, causal=True)
    for x in (bias, selection_bias)
  ]
  behind = max((x.behind for x in occurring if x is not None), default=None)
  if behind is None:
    return {}

  def table(bias, rows):
    if bias is None:
      return jnp.zeros((rows, behind + 1), jnp.float32)
    # From the query's own key on, and the last one for all farther ones.
    values = bias.values[:, ::-1].astype(jnp.float32)
    more = ((0, 0), (0, behind - bias.behind))
    values = jnp.pad(values, more, mode='edge')
    return jnp.broadcast_to(values, (rows, behind + 1))

  tables = {'bias': table(occurring[0], heads)}
  if groups:
    tables['selection_bias'] = table(occurring[1], groups)
  return derivatives.reverse_mode_alone(tables, 'pallas_gpu')


def _plan(inputs, block, selection, scale, memory_tau, *, interpret) -> Plan:
  batch, length, heads, size = inputs.query.shape
  groups, selection_size = 1, None
  if selection is not None:
    _, _, groups, selection_size = inputs.selection_query.shape
  return Plan(
    batch=batch,
    heads=heads,
    groups=groups,
    length=length,
    size=size,
    selection_size=selection_size,
    block=block,
    scale=float(scale),
    selection_scale=None if selection is None else float(selection.scale),
    memory_tau=memory_tau,
    packed=inputs.start is not None,
    behind=None if inputs.bias is None else inputs.bias.shape[1] - 1,
    dtype=inputs.query.dtype,
    interpret=interpret,
  )


def _limits(plan: Plan, inputs: Inputs, eps: float, length: int):
  """Returns f32[B, G, T, N], see `limits`; None where no key can be dropped.

  Args:
    plan: the plan of the call.
    inputs: of the kernels.
    eps: the limit of the weight of all dead keys; positive.
    length: N without the tokens that make whole tiles.
  """
  if not plan.selects or plan.query_blocks == 1:
    return None
  bias = None
  if inputs.bias is not None:
    bias = DistanceBias(inputs.bias[:, ::-1])
  start = inputs.start
  if start is None and length < plan.length:
    tokens = jnp.arange(plan.length)[None]
    start = jnp.where(tokens < length, 0, plan.length)
    start = jnp.broadcast_to(start, (plan.batch, plan.length))
  return limits_of(
    inputs.query.swapaxes(1, 2),
    inputs.key.swapaxes(1, 2),
    start,
    bias,
    groups=plan.groups,
    block=plan.block.query,
    scale=plan.scale,
    forget_below=eps,
    memory_tau=plan.memory_tau,
  )[:, :, :, 0]


def _run(plan: Plan, forward, inputs: Inputs, limits):
  """Returns the sums of S, what is read of keys, and the forward outputs."""
  sums = gpu_forward.column_sums(plan, inputs)
  lists = None if limits is None else live.lists(plan, sums, limits)
  return sums, lists, forward(plan, inputs, sums, lists)


def _results(plan: Plan, outputs):
  """Returns out, [B, N, H, D], and M, f32[B, G, N] or None."""
  if outputs.memory is None:
    return outputs.out, None
  # All programs of a group have the same F.
  shared = plan.heads // plan.groups // plan.forward_heads
  return outputs.out, outputs.memory[:, ::shared]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(plan: Plan, forward, inputs: Inputs, limits):
  """Runs the kernels of a call, and those of its gradients.

  Args:
    plan: the plan of the call.
    forward: see `attention`.
    inputs: of the kernels.
    limits: f32[B, G, T, N], see `limits`; None where no key is dropped.

  Returns:
    out, [B, N, H, D], and M, f32[B, G, N] or None.
  """
  *_, outputs = _run(plan, forward, inputs, limits)
  return _results(plan, outputs)


def _attention_fwd(plan, forward, inputs, limits):
  run = functools.partial(_run, plan, forward)
  sums, lists, outputs = derivatives.once(run, 'pallas_gpu')(inputs, limits)
  read = None
  if lists is not None:
    read = live.Live(lists, live.ends(plan, sums, limits))
  return _results(plan, outputs), (inputs, sums, read, outputs)


def _attention_bwd(plan, _, saved, grads):
  backward = functools.partial(gpu_backward.backward, plan)
  return derivatives.once(backward, 'pallas_gpu')(*saved, *grads), None


attend.defvjp(_attention_fwd, _attention_bwd)
