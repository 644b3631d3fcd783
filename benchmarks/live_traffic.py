"""Bytes and operations of the TPU kernels as a function of what is forgotten.

  python benchmarks/live_traffic.py

It counts selective attention with one selecting head, forward and backward, in
bfloat16, as benchmarks/traffic.py does: from the kernels' own grids, index maps
and bodies. Nothing runs and no TPU is needed. What is new is that the kernels
read tables of what is alive, so the counts are those at tables of keys whose
lives are drawn at random. Most lives are short and some are very long: a share
of 1 / (1 + t / m) outlives t tokens, m the median.

Copies of listed keys by XLA are added, as their rows read and written once. The
bound of each key, whose cost grows with N alone, is not.

The table is Markdown. The last line is JSON: for each length and median the
bytes and operations relative to reading all keys, for which forget_below is 0.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
import traffic

from selective_t5x.attention import kernel_costs
from selective_t5x.attention.selection import Selection
from selective_t5x.attention.tpu import backward, forward, lists
from selective_t5x.attention.tpu import kernels as pallas_tpu
from selective_t5x.attention.tpu import reads as tpu_reads
from selective_t5x.attention.tpu.column_sums import column_sums
from selective_t5x.attention.tpu.forward import Inputs
from selective_t5x.attention.tpu.plan import BlockSizes, Plan

MEDIANS = (None, 1000, 300, 100, 30, 10)


def main() -> None:
  """Prints the table and the ratios."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--batch', type=int, default=4)
  parser.add_argument('--heads', type=int, default=8)
  parser.add_argument('--size', type=int, default=128)
  parser.add_argument('--lengths', type=int, nargs='+', default=[2048, 8192])
  args = parser.parse_args()
  ratios = {}
  print('| N | median life | pairs alive | MB | of all | GFLOP | of all |')
  print('| --- | --- | --- | --- | --- | --- | --- |')
  for length in args.lengths:
    shape = (args.batch, length, args.heads, args.size)
    every = of_all_keys(shape)
    print(f'| {length} | all keys are read | | {_figures(every, every)} |')
    for median in MEDIANS:
      share, cost = of_live_keys(shape, median)
      life = 'no key dies' if median is None else f'{median} tokens'
      print(f'| {length} | {life} | {share:.2f} | {_figures(cost, every)} |')
      ratios[f'n{length}_life_{median}'] = {
        'live_share': round(share, 3),
        'bytes': round(cost.bytes / every.bytes, 3),
        'flops': round(cost.flops / every.flops, 3),
      }
  print(json.dumps(ratios))


def _figures(cost, every):
  return (
    f'{cost.bytes / 1e6:,.0f} | {cost.bytes / every.bytes:.2f} | '
    f'{cost.flops / 1e9:,.0f} | {cost.flops / every.flops:.2f}'
  )


def of_all_keys(shape: tuple[int, int, int, int]) -> kernel_costs.Cost:
  """Returns the cost where all keys are read; shape is B, N, H, D."""
  x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
  attend = traffic.with_gradients(traffic.selective)
  return kernel_costs.total(kernel_costs.kernel_costs(attend, x, x, x, x))


def of_live_keys(
  shape: tuple[int, int, int, int], median: float | None
) -> tuple[float, kernel_costs.Cost]:
  """Returns the share of causal pairs that are alive, and the cost.

  Args:
    shape: B, N, H, D.
    median: that of the keys' lives, in tokens; None where no key dies.
  """
  plan, inputs = _plan(shape)
  dies = _deaths(plan, median)
  reads = jax.jit(tpu_reads.reads, static_argnums=0)(plan, dies)
  reads = jax.tree.map(np.asarray, reads)
  sums = jax.ShapeDtypeStruct(
    (plan.batch, 1, plan.query_blocks, 1, plan.length), jnp.float32
  )

  def run(inputs, sums, grad):
    read = pallas_tpu.read(plan, inputs, pallas_tpu.Live(sums, reads))
    outputs = forward.forward(plan, read, reads)
    grads = backward.backward(plan, read, outputs, reads, grad, None)
    return column_sums(plan, inputs), outputs, grads

  kernels = kernel_costs.kernel_costs(run, inputs, sums, inputs.query)
  cost = kernel_costs.total(kernels)
  cost = cost._replace(bytes=cost.bytes + _copied(plan, reads, inputs, sums))
  query, key = np.arange(plan.length)[:, None], np.arange(plan.length)
  block = query // plan.block.query
  alive = (key // plan.block.query == block) | (block < dies[0, 0])
  return float(np.mean(alive[key <= query])), cost


def _plan(shape) -> tuple[Plan, Inputs]:
  batch, length, heads, size = shape

  def like(heads):
    return jax.ShapeDtypeStruct((batch, heads, length, size), jnp.bfloat16)

  inputs = Inputs(*[like(heads)] * 3, *[like(1)] * 2)
  selection = Selection(inputs.selection_query, inputs.selection_key, 1.0)
  plan = pallas_tpu.plan_of(
    inputs,
    BlockSizes(),
    (None, None),
    selection,
    1.0,
    None,
    forgets=True,
    interpret=True,
  )
  return plan, inputs


def _deaths(plan, median):
  """Draws the first block that does not need a key, i32[B, 1, N]."""
  shape = (plan.batch, 1, plan.length)
  if median is None:
    return np.full(shape, plan.query_blocks, np.int32)
  lives = median * (1 / np.random.default_rng(0).random(shape) - 1)
  dies = (np.arange(plan.length) + lives) // plan.block.query + 1
  return np.minimum(dies, plan.query_blocks).astype(np.int32)


def _copied(plan, reads, inputs, sums) -> int:
  """Returns the bytes that XLA moves for listed keys."""
  listed = jax.eval_shape(
    lambda inputs: lists.listed(plan, reads, inputs),
    inputs._replace(sums=sums),
  )
  share = jax.ShapeDtypeStruct(listed.selection_key.shape, jnp.float32)

  def size(*arrays):
    return sum(kernel_costs.padded_bytes(x.shape, x.dtype) for x in arrays)

  copies = size(listed.key, listed.value, listed.selection_key, listed.sums)
  grads = size(listed.key, listed.value, share)
  # Read and written in both passes; gradients are read twice and written.
  return int(reads.tiles) * (2 * 2 * copies + 3 * grads) // plan.lists


if __name__ == '__main__':
  main()
