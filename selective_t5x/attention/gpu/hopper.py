"""Selective attention on Hopper GPUs: their own forward kernel.

The column sums and the backward pass are those of `gpu.kernels`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from selective_t5x.attention import live_keys, mesh
from selective_t5x.attention.distance_bias import DistanceBias
from selective_t5x.attention.gpu import hopper_kernel, kernels
from selective_t5x.attention.gpu.plan import LARGEST_SIZE
from selective_t5x.attention.selection import ALL, Constraints, Selection

# Parts of the names of GPUs of compute capability 9.0.
_HOPPER = ('H100', 'H200', 'H800', 'H20')
# The sizes of heads; smaller ones are padded.
_SIZES = (64, LARGEST_SIZE)


def unsupported(
  dtype,
  *,
  bias: bool,
  selects: bool,
  constraints: Constraints = ALL,
  sizes: tuple[int, ...] = (),
  interpret: bool = False,
) -> str | None:
  """Returns why `attention` cannot run here, or None if it can.

  Args:
    dtype: the dtype of the queries.
    bias: whether the logits or the selection have one.
    selects: whether there is selection.
    constraints: those of the selection.
    sizes: D and E.
    interpret: whether it runs in Pallas' interpreter.
  """
  if not selects:
    return 'it has selection alone'
  if bias:
    return "it adds no bias: 'pallas_gpu' does"
  if jnp.dtype(dtype) != jnp.bfloat16:
    return f'it takes bfloat16, these are {jnp.dtype(dtype)}'
  lack = kernels.unsupported(
    dtype,
    bias=False,
    constraints=constraints,
    sizes=sizes,
    interpret=interpret,
  )
  if lack or interpret:
    return lack
  kind = mesh.device_kind()
  if not any(name in kind for name in _HOPPER):
    return f'it needs a GPU of compute capability 9.0 (Hopper), not {kind}'
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
  interpret: Any = False,
) -> tuple[jax.Array, jax.Array | None]:
  """Selective attention by fused kernels, forward and backward, on one device.

  Arguments and results are those of `kernels.attention`, but for:
    query: bfloat16.
    selection: not None, and without bias.
    bias: None.
    forget_below: no key is dropped; the log says so.
    interpret: False, or the parameters of Pallas' interpreter of Mosaic GPU
      kernels, to run there, on any platform and very slowly. JAX allows its
      effects in no gradient under `jax.jit`.

  Raises:
    ValueError: if `unsupported` gives a reason, or G does not divide H.
  """
  selects = selection is not None
  sizes: tuple[int, ...] = (query.shape[-1],)
  if selects:
    sizes += (selection.query.shape[-1],)
  why = unsupported(
    query.dtype,
    bias=not (bias is None and (not selects or selection.bias is None)),
    selects=selects,
    constraints=selection.constraints if selects else ALL,
    sizes=sizes,
    interpret=bool(interpret),
  )
  if why:
    raise ValueError(f'hopper_gpu cannot run here: {why}')
  if live_keys.lost_weight(forget_below, value.dtype):
    live_keys.log_that_none_is_dropped('hopper_gpu reads all keys')
  length, size = query.shape[1], query.shape[3]
  padded = pl.cdiv(length, hopper_kernel.QUERIES) * hopper_kernel.QUERIES

  def whole(x):
    x_size = min(n for n in _SIZES if n >= x.shape[3])
    more = (0, 0), (0, padded - length), (0, 0), (0, x_size - x.shape[3])
    return jnp.pad(x, more)

  if segment_ids is not None:
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, padded - length)))
  out, memory = kernels.attention(
    whole(query),
    whole(key),
    whole(value),
    selection=selection._replace(
      query=whole(selection.query), key=whole(selection.key)
    ),
    scale=scale,
    segment_ids=segment_ids,
    memory_tau=memory_tau,
    interpret=bool(interpret),
    forward=functools.partial(hopper_kernel.forward, interpret=interpret),
  )
  out = out[:, :length, :, :size]
  return out, None if memory is None else memory[:, :length]
