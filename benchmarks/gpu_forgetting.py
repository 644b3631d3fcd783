"""Counts what the GPU kernels compute and load where keys are dead.

  python -m benchmarks.gpu_forgetting        (any machine, under a minute)

Forward and backward passes in bfloat16, from the kernels' own programs
(attention/kernel_costs.py): over the same kernels that read all keys
(`forget_below` = 0), and over plain causal attention. The numbers of live keys
before each block of queries are given: shares of all earlier keys at a length
of 2,048, without and with T5's bias, and three layers of a trained model at
1,024 (`make bench-forgetting` trains such models). Which of the earlier keys
die is random; the dead stay dead. Nothing is timed. The last line is JSON.
"""

import argparse
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import gpu
from selective_t5x.attention import kernel_costs
from selective_t5x.attention.gpu import live
from selective_t5x.attention.gpu.plan import BlockSizes, block_sizes

_SHARES = (1.0, 0.5, 0.25, 0.125)
_LENGTH = 2048
# Those of T5's biases.
_DISTANCES = 129
# Keys that a block of 128 queries reads, its own included, of 1,024.
_LAYERS = (
  (128, 222, 224, 222, 226, 227, 233, 229),
  (128, 231, 275, 308, 328, 338, 329, 301),
  (128, 151, 151, 151, 153, 156, 154, 154),
)


def deaths(counts, block: int) -> np.ndarray:
  """Draws the blocks of queries from which keys are dead.

  Args:
    counts: how many keys before each block are alive.
    block: queries of a block.

  Returns:
    i32[N], the number of blocks for keys that stay alive.
  """
  rng = np.random.default_rng(0)
  ends = np.full(len(counts) * block, len(counts), np.int32)
  alive = np.zeros(0, int)
  for index, count in enumerate(counts):
    last = np.arange(max(index - 1, 0) * block, index * block)
    earlier = rng.permutation(np.concatenate([alive, last]))
    alive, dead = earlier[:count], earlier[count:]
    ends[dead] = index
  return ends


def numbers(ends, block: BlockSizes, rows: int) -> dict[str, np.ndarray]:
  """Returns the bounds of the kernels' loops where keys die, by name.

  Args:
    ends: i32[N], as `deaths` returns it, for blocks of `block.query`.
    block: the tiles.
    rows: B.
  """
  blocks = np.arange(len(ends) // block.query)[:, None]
  own = np.arange(len(ends)) // block.query
  order = live.ordered(jnp.asarray(ends)[None, None], block)
  bounds = {
    'counts': np.sum((own <= blocks) & (blocks < ends), axis=1),
    'firsts': np.asarray(order.firsts)[0, 0],
    'lasts': np.asarray(order.lasts)[0, 0],
  }
  return {
    name: np.broadcast_to(x, (rows, 1, len(x))) for name, x in bounds.items()
  }


class Counts(NamedTuple):
  """What the kernels of a call do, forward and backward.

  Attributes:
    flops: operations of matrix products, by kernel.
    loaded: bytes of loads and stores.
  """

  flops: dict[str, int]
  loaded: int

  @classmethod
  def of(
    cls, attend, shape, distances=None, numbers=None, **settings
  ) -> 'Counts':
    """Counts `gpu.selective` or `gpu.plain`.

    Args:
      attend: the function.
      shape: B, N, H, D.
      distances: R of T5's bias; None without one.
      numbers: those of the function of this name; None where all are alive.
      **settings: of the function.
    """
    args = [jax.ShapeDtypeStruct(shape, jnp.bfloat16)] * 4
    if distances is not None:
      table = (shape[2], distances)
      args.append(jax.ShapeDtypeStruct(table, jnp.float32))
    run = gpu.with_gradients(
      lambda *arrays: attend(*arrays, interpret=True, **settings)
    )
    costs = kernel_costs.kernel_costs(run, *args, numbers=numbers)
    return cls(
      {name.rpartition('_')[2]: cost.flops for name, cost in costs},
      kernel_costs.loaded(jax.make_jaxpr(run)(*args).jaxpr, numbers),
    )

  @property
  def operations(self) -> int:
    """Those of all kernels."""
    return sum(self.flops.values())


def counted(
  counts, block: int, size: int, distances: int | None = None
) -> dict[str, float]:
  """Counts the kernels where some keys are alive.

  Args:
    counts: how many keys before each block are alive.
    block: queries of a block, a multiple of the tiles'.
    size: D.
    distances: R of T5's bias; None without one.

  Returns:
    alive, the share of the keys that blocks of queries would read; the
    operations of the kernels and of all, and the bytes of all loads and stores,
    over those with all keys and over those of plain attention.
  """
  shape = gpu.shape_of(len(counts) * block, size)
  biases = distances is not None
  tiles = block_sizes('H100', size, biases, live=True)
  bounds = numbers(
    deaths(counts, block) * (block // tiles.query), tiles, shape[0]
  )
  some = Counts.of(
    gpu.selective,
    shape,
    distances,
    bounds,
    forget_below=None,
    block_sizes=tiles,
  )
  every, plain = (
    Counts.of(
      attend, shape, distances, block_sizes=block_sizes('H100', size, biases)
    )
    for attend in (gpu.selective, gpu.plain)
  )
  blocks = bounds['counts'].shape[2]
  figures = {
    'alive': np.mean(bounds['counts']) / (tiles.query * (blocks + 1) / 2)
  }
  for name in ('forward', 'keys', 'queries'):
    figures[name] = some.flops[name] / every.flops[name]
  for name, other in (('all', every), ('plain', plain)):
    figures[f'operations_over_{name}'] = some.operations / other.operations
    figures[f'bytes_over_{name}'] = some.loaded / other.loaded
  return {name: round(float(x), 3) for name, x in figures.items()}


def main() -> None:
  """Prints a table in Markdown, and the figures."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--size', type=int, default=64, help='D')
  args = parser.parse_args()
  # Deaths are drawn for the kernels' own blocks of queries.
  block = block_sizes('H100', args.size).query
  before = np.arange(_LENGTH // block) * block
  cases = {
    f'{share:g} of {_LENGTH:,}': ((share * before).astype(int), block)
    for share in _SHARES
  }
  for number, layer in enumerate(_LAYERS, start=1):
    cases[f'layer {number} of 1,024'] = (np.asarray(layer) - 128, 128)
  figures = {name: counted(*case, args.size) for name, case in cases.items()}
  for share in _SHARES:
    name = f'{share:g} of {_LENGTH:,}'
    figures[f"{name}, T5's bias"] = counted(*cases[name], args.size, _DISTANCES)
  names = [x.replace('_', ' ') for x in next(iter(figures.values()))]
  print(' | '.join(['', 'earlier keys alive', *names, '']).strip())
  print(' | '.join(['', *['---'] * (1 + len(names)), '']).strip())
  for case, values in figures.items():
    print(' | '.join(['', case, *map(str, values.values()), '']).strip())
  print(json.dumps(figures))


if __name__ == '__main__':
  main()
