"""Bidirectional attention on NVIDIA GPUs: encoders, and cross-attention.

It runs the kernels of `gpu.kernels` without selection: loops go over all tiles
of keys, and segment ids say which keys a query sees. Source: Dao, arXiv
2307.08691; biases by distance as in `gpu.windows` and `gpu.biases`, ours.
"""

import jax
import jax.numpy as jnp

from selective_t5x.attention import derivatives, fused, masks, mesh, nonfinite
from selective_t5x.attention.distance_bias import DistanceBias
from selective_t5x.attention.gpu import forward as gpu_forward
from selective_t5x.attention.gpu import kernels
from selective_t5x.attention.gpu.blocks import Inputs
from selective_t5x.attention.gpu.plan import (
  BlockSizes,
  Full,
  Plan,
  padded_length,
)
from selective_t5x.attention.gpu.plan import (
  block_sizes as tiles_of,
)


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  scale: float,
  bias: DistanceBias | None,
  query_ids: jax.Array,
  key_ids: jax.Array,
  block_sizes: BlockSizes | None = None,
  interpret: bool = False,
) -> jax.Array:
  """Attention to all keys of a query's segment, on one device.

  Arguments and results are those of `blocked_full.attention`, but for:
    query: bfloat16 or float32, D at most 128.
    bias: a DistanceBias or None. Its memory is that of `kernels.attention`.
    block_sizes: None for those of the GPU, `plan.block_sizes`.
    interpret: whether to run in Pallas' interpreter, on any platform and very
      slowly.

  Raises:
    ValueError: if `kernels.unsupported` gives a reason.
  """
  batch, length, heads, size = query.shape
  why = kernels.unsupported(
    query.dtype, bias=fused.is_array(bias), sizes=(size,), interpret=interpret
  )
  if why:
    raise ValueError(f'pallas_gpu cannot run here: {why}')
  (query,), query_faults = nonfinite.clean(query, live=query_ids)
  (key, value), key_faults = nonfinite.clean(key, value, live=key_ids)
  block = block_sizes
  if block is None:
    kind = '' if interpret else mesh.device_kind()
    block = tiles_of(kind, size, bias is not None)
  queries, keys = (padded_length(x.shape[1], block) for x in (query, key))
  tensors = derivatives.reverse_mode_alone((query, key, value), 'pallas_gpu')
  table, behind, ahead = _table(bias, max(length, key.shape[1]), heads)

  def ids(x, length):
    return jnp.pad(x.astype(jnp.int32), ((0, 0), (0, length - x.shape[1])))

  inputs = Inputs(
    *(
      kernels.whole_tiles(x, padded, query.dtype)
      for x, padded in zip(tensors, (queries, keys, keys), strict=True)
    )
  )._replace(
    bias=table, query_ids=ids(query_ids, queries), key_ids=ids(key_ids, keys)
  )
  plan = Plan(
    batch=batch,
    heads=heads,
    groups=1,
    length=queries,
    size=inputs.query.shape[3],
    selection_size=None,
    block=block,
    scale=float(scale),
    selection_scale=None,
    memory_tau=None,
    packed=False,
    behind=behind,
    dtype=query.dtype,
    interpret=interpret,
    full=Full(keys, ahead),
  )
  out, _ = kernels.attend(plan, gpu_forward.forward, inputs, None)
  sees = nonfinite.by_ids(query_ids, key_ids)
  some_key = sees(jnp.ones((*key_ids.shape, 1), bool), False)[..., 0]
  out = out[:, :length, :, :size].astype(value.dtype)
  out = masks.zero_padding(out, some_key)
  reached, _ = nonfinite.Faults(query_faults, key_faults).reach(sees)
  return nonfinite.mark(out, reached)


def _table(bias: DistanceBias | None, length: int, heads: int):
  """Returns the biases of `Inputs`, and how far keys of their own lie.

  Args:
    bias: those of the call.
    length: of the longer one of the rows of queries and of keys.
    heads: H.

  Returns:
    f32[H, R], behind and ahead of `Plan`; None, None and 0 without biases.
  """
  if bias is None:
    return None, None, 0
  bias = bias.within(length, causal=False)
  # The numbers of far keys on either side are two.
  more = 0 if bias.ahead else 1
  values = bias.values[:, ::-1].astype(jnp.float32)
  values = jnp.pad(values, ((0, 0), (more, 0)), mode='edge')
  table = jnp.broadcast_to(values, (heads, values.shape[1]))
  table = derivatives.reverse_mode_alone(table, 'pallas_gpu')
  return table, bias.behind, bias.ahead + more
