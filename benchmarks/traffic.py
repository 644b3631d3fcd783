"""Bytes and operations of the TPU kernels and of jax's flash attention.

  python benchmarks/traffic.py --batch=4 --heads=8 --length=2048 --size=128

It counts causal attention, forward and backward, in bfloat16. Nothing runs and
no TPU is needed: the counts come from the kernels' grids, index maps and bodies
(selective_t5x/attention/kernel_costs.py), also for jax's kernels with their
default blocks. The last line is JSON: bytes and operations relative to jax's.
"""

import argparse
import json

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import flash_attention

from selective_t5x.attention import kernel_costs
from selective_t5x.attention.distance_bias import DistanceBias
from selective_t5x.attention.selection import Selection
from selective_t5x.attention.tpu import kernels as pallas_tpu


def main() -> None:
  """Prints the kernels and the ratios."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--batch', type=int, default=4)
  parser.add_argument('--heads', type=int, default=8)
  parser.add_argument('--length', type=int, default=2048)
  parser.add_argument('--size', type=int, default=128)
  args = parser.parse_args()
  shape = (args.batch, args.length, args.heads, args.size)
  costs = compare(shape)
  flash, selective = costs['flash'], costs['selective']
  print(
    json.dumps(
      {
        'bytes_over_flash': round(selective.bytes / flash.bytes, 4),
        'flops_over_flash': round(selective.flops / flash.flops, 4),
        'flops_over_plain': round(selective.flops / costs['plain'].flops, 4),
        'bytes_biased_over_selective': round(
          costs['biased'].bytes / selective.bytes, 4
        ),
      }
    )
  )


def compare(shape: tuple[int, int, int, int]) -> dict[str, kernel_costs.Cost]:
  """Counts our selective and plain attention and jax's; prints all kernels.

  Args:
    shape: B, N, H, D.
  """
  costs = {}
  for name, attend in ATTENTION.items():
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    kernels = kernel_costs.kernel_costs(with_gradients(attend), x, x, x, x)
    costs[name] = kernel_costs.total(kernels)
    for kernel, cost in [*kernels, ('total', costs[name])]:
      print(
        f'{name:10}{kernel:40}{cost.bytes / 1e6:10.1f} MB'
        f'{cost.flops / 1e9:10.1f} GFLOP'
      )
  return costs


def selective(query, key, value, *, bias=None, interpret=True, **kwargs):
  """Attends with selection by head 0; [B, N, H, D] as in tpu/kernels."""
  scale = query.shape[-1] ** -0.5
  return pallas_tpu.attention(
    query,
    key,
    value,
    selection=Selection(
      query[:, :, :1],
      key[:, :, :1],
      scale,
      bias and bias.map(lambda values: values[:1]),
    ),
    scale=scale,
    bias=bias,
    interpret=interpret,
    **kwargs,
  )[0]


def biased(query, key, value, **kwargs):
  """Attends with selection and T5's biases, of 129 distances."""
  bias = DistanceBias(jnp.zeros((query.shape[2], 129)))
  return selective(query, key, value, bias=bias, **kwargs)


def plain(query, key, value, *, interpret=True, **kwargs):
  """Attends without selection, by the same kernels."""
  return pallas_tpu.attention(
    query,
    key,
    value,
    selection=None,
    scale=query.shape[-1] ** -0.5,
    interpret=interpret,
    **kwargs,
  )[0]


def flash(query, key, value):
  """Attends with jax's kernels, which take [B, H, N, D]."""
  out = flash_attention.flash_attention(
    *(x.swapaxes(1, 2) for x in (query, key, value)),
    causal=True,
    sm_scale=query.shape[-1] ** -0.5,
  )
  return out.swapaxes(1, 2)


ATTENTION = {
  'flash': flash,
  'plain': plain,
  'selective': selective,
  'biased': biased,
}


def with_gradients(attend):
  """Returns a function of query, key, value and the output's cotangent."""

  def run(query, key, value, cotangent):
    out, backward = jax.vjp(attend, query, key, value)
    return out, backward(cotangent)

  return run


if __name__ == '__main__':
  main()
