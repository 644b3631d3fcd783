"""Times selective attention on an NVIDIA GPU over plain fused attention.

  make bench-gpu        (python -m benchmarks.gpu, in .venv-cuda)

Forward and backward passes in bfloat16, 16,384 tokens of 8 heads, jitted:
selective attention by our kernels, plain causal attention by the same kernels,
by jax's Triton kernels and by cuDNN; on a Hopper GPU also selective attention
with the forward kernel of 'hopper_gpu'. The functions take turns within one
run, one call each; a figure is the ratio of two medians. TFLOP/s count the
products of plain causal attention, 9 for each pair of a query and a key of a
head that it sees, whatever a function computes beside.

Then a train step of the paper's decoder of d = 12 at 512 and 2,048 tokens,
selection over the baseline, and tokens/s of decoding with each policy over the
full cache (`benchmarks/gpu_models.py`).

Without a GPU nothing is timed, and it says so. Operations and bytes are counted
in any case, from the kernels' own programs (attention/kernel_costs.py): bytes
of all operands and results once, which the main memory moves at least, and of
all loads and stores, which it moves at most. The last line is JSON.
"""

import argparse
import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.gpu import attention as triton_attention

from benchmarks import gpu_models
from selective_t5x.attention import kernel_costs
from selective_t5x.attention.distance_bias import DistanceBias
from selective_t5x.attention.gpu import cudnn
from selective_t5x.attention.gpu import hopper as hopper_gpu
from selective_t5x.attention.gpu import kernels as pallas_gpu
from selective_t5x.attention.selection import Selection

_TOKENS, _HEADS = 16384, 8


def selective(
  query, key, value, bias=None, *, attention=pallas_gpu.attention, **settings
):
  """Selection by head 0, by our kernels: [B, N, H, D] each, bias [H, R]."""
  scale = query.shape[-1] ** -0.5
  of_heads = of_selection = None
  if bias is not None:
    of_heads, of_selection = DistanceBias(bias), DistanceBias(bias[:1])
  return attention(
    query,
    key,
    value,
    selection=Selection(query[:, :, :1], key[:, :, :1], scale, of_selection),
    scale=scale,
    bias=of_heads,
    **settings,
  )[0]


def plain(query, key, value, bias=None, **settings):
  """Plain causal attention by our kernels; bias [H, R]."""
  scale = query.shape[-1] ** -0.5
  of_heads = None if bias is None else DistanceBias(bias)
  return pallas_gpu.attention(
    query, key, value, selection=None, scale=scale, bias=of_heads, **settings
  )[0]


def triton(query, key, value):
  """Plain causal attention by jax's kernels in Pallas' Triton."""
  return triton_attention.mha(
    query, key, value, None, sm_scale=query.shape[-1] ** -0.5, causal=True
  )


def cudnn_attention(query, key, value):
  """Plain causal attention by cuDNN."""
  scale = query.shape[-1] ** -0.5
  return cudnn.attention(query, key, value, selection=None, scale=scale)[0]


def with_gradients(attend):
  """Returns a function of the output's cotangent and what is attended."""

  def run(cotangent, *arrays):
    out, backward = jax.vjp(attend, *arrays)
    return out, backward(cotangent)

  return run


def shape_of(length: int, size: int) -> tuple[int, int, int, int]:
  """Returns B, N, H, D with the same number of tokens for every N."""
  return (max(1, _TOKENS // length), length, _HEADS, size)


def counted(shape) -> dict[str, float]:
  """Returns selection's operations and bytes over plain attention's."""
  x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)

  def costs(attend):
    run = with_gradients(lambda *heads: attend(*heads, interpret=True))
    jaxpr = jax.make_jaxpr(run)(x, x, x, x)
    total = kernel_costs.total(kernel_costs.kernel_costs(run, x, x, x, x))
    return total, kernel_costs.loaded(jaxpr.jaxpr)

  (ours, ours_loaded), (base, base_loaded) = costs(selective), costs(plain)
  return {
    'flops_over_plain': round(ours.flops / base.flops, 4),
    'least_bytes_over_plain': round(ours.bytes / base.bytes, 4),
    'loaded_bytes_over_plain': round(ours_loaded / base_loaded, 4),
  }


def medians(functions, shape, rounds) -> dict[str, float]:
  """Returns {name: median seconds} of functions that take turns."""
  keys = jax.random.split(jax.random.key(0), 4)
  inputs = [jax.random.normal(k, shape, jnp.bfloat16) for k in keys]
  programs = {
    name: jax.jit(with_gradients(function))
    for name, function in functions.items()
  }
  seconds = {name: [] for name in programs}
  for round_ in range(rounds + 2):
    for name, program in programs.items():
      start = time.perf_counter()
      jax.block_until_ready(program(*inputs))
      if round_ >= 2:  # The first ones compile and warm up.
        seconds[name].append(time.perf_counter() - start)
  return {name: float(np.median(values)) for name, values in seconds.items()}


def timed(lengths, sizes, rounds) -> dict[str, float]:
  """Times all shapes, prints them, and returns the ratios."""
  functions = {
    'selective': selective,
    'plain': plain,
    'triton': triton,
    'cudnn': cudnn_attention,
  }
  why = hopper_gpu.unsupported(jnp.bfloat16, bias=False, selects=True)
  if why:
    print(f'hopper_gpu is not timed: {why}')
  else:
    functions['hopper'] = functools.partial(
      selective, attention=hopper_gpu.attention
    )
  figures = {}
  for size in sizes:
    for length in lengths:
      shape = shape_of(length, size)
      times = medians(functions, shape, rounds)
      pairs = shape[0] * _HEADS * length * (length + 1) / 2
      print(f'B={shape[0]} N={length} H={_HEADS} D={size}')
      for name, one in times.items():
        rate = 9 * 2 * pairs * size / one / 1e12
        print(f'  {name:10} {1e3 * one:9.3f} ms {rate:8.1f} TFLOP/s')
      for name in times.keys() - {'selective'}:
        figures[f'n{length}_d{size}_over_{name}'] = round(
          times['selective'] / times[name], 3
        )
  return figures


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=20)
  parser.add_argument(
    '--lengths',
    type=int,
    nargs='+',
    default=[512, 1024, 2048, 4096, 8192, 16384],
  )
  parser.add_argument('--sizes', type=int, nargs='+', default=[64, 128])
  args = parser.parse_args()
  figures = {}
  for size in args.sizes:
    ratios = counted(shape_of(2048, size))
    figures |= {f'n2048_d{size}_{name}': x for name, x in ratios.items()}
  device = jax.devices()[0]
  figures['device'] = device.device_kind
  if device.platform == 'gpu':
    figures |= timed(args.lengths, args.sizes, args.rounds)
    figures |= gpu_models.train_steps((512, 2048))
    figures |= gpu_models.decoding()
  else:
    print(f'no times: JAX found no GPU here, but a {device.platform}')
  print(json.dumps(figures))


if __name__ == '__main__':
  main()
