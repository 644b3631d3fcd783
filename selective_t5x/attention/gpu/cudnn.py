"""Plain causal attention by cuDNN, NVIDIA's own kernels: the baseline on GPUs.

They know neither selection nor segments that cost no N x N mask, and take
bfloat16 alone; `gpu.kernels` does the rest.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from selective_t5x.attention import fused, mesh
from selective_t5x.attention.gpu.plan import LARGEST_SIZE, too_old
from selective_t5x.attention.selection import Selection

# Heads are of whole vectors of so many numbers.
_VECTOR = 8


def unsupported(
  dtype,
  *,
  bias: bool,
  packed: bool,
  selects: bool,
  sizes: tuple[int, ...] = (),
) -> str | None:
  """Returns why `attention` cannot run here, or None if it can.

  Args:
    dtype: the dtype of the queries.
    bias: whether the logits have one.
    packed: whether there are segment ids.
    selects: whether there is selection.
    sizes: D.
  """
  if selects:
    return 'it has no selection'
  if bias:
    return 'its call here adds no bias: the gradient of one is N x N'
  if packed:
    return 'it has no segments, except with a mask of N x N'
  if jnp.dtype(dtype) != jnp.bfloat16:
    return f'its call here takes bfloat16, these are {jnp.dtype(dtype)}'
  size = max(sizes, default=_VECTOR)
  if size > LARGEST_SIZE or size % _VECTOR:
    return (
      f'it takes heads of a multiple of {_VECTOR} numbers up to '
      f'{LARGEST_SIZE}, and these have {size}'
    )
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
  bias: jax.Array | None = None,
  segment_ids: jax.Array | None = None,
  memory_tau: float | None = None,
  implementation: Literal['cudnn', 'xla'] = 'cudnn',
) -> tuple[jax.Array, None]:
  """Plain causal attention by `jax.nn`, on one device.

  Arguments and results are those of `blocked.attention`, but for:
    query: bfloat16.
    selection: None.
    bias: None.
    segment_ids: None.
    memory_tau: None.
    implementation: that of `jax.nn.dot_product_attention`.

  Raises:
    ValueError: if there is anything but queries, keys and values.
  """
  if any(x is not None for x in (selection, bias, segment_ids, memory_tau)):
    raise ValueError(
      'cudnn: plain causal attention over whole rows alone, without selection, '
      'bias, segments and M'
    )
  call = fused.call(
    'cudnn',
    query,
    key,
    value,
    selection=None,
    segment_ids=None,
    memory_tau=None,
  )
  cleaned = [x.astype(query.dtype) for x in call.tensors]
  out = jax.nn.dot_product_attention(
    cleaned[0],
    cleaned[1],
    cleaned[2],
    scale=scale,
    is_causal=True,
    implementation=implementation,
  )
  return call.results(out.astype(value.dtype), None)
