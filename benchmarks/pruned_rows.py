"""Temporaries of pruned attention to whole rows, with and without biases.

  python -m benchmarks.pruned_rows --length=8192

It compiles a selective layer that keeps 64 keys, H=8 D=64 in float32, on one
row of the length, without biases, with T5's by distance, and with those as an
array of N x N. Nothing runs. The last line is JSON, in MB.
"""

import argparse
import json

import jax
import jax.numpy as jnp

from selective_t5x import attention, pruning
from selective_t5x.attention.distance_bias import DistanceBias
from selective_t5x.pruning import query_blocks

_HEADS, _SIZE, _KEPT, _DISTANCES = 8, 64, 64, 129


def main() -> None:
  """Prints the temporaries of each program."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--length', type=int, default=8192)
  length = parser.parse_args().length
  biases = {
    'none': lambda values: None,
    'by_distance': DistanceBias,
    'array': lambda values: DistanceBias(values).matrix(length, length),
  }
  print(
    json.dumps(
      {name: temporaries(length, bias_of) for name, bias_of in biases.items()}
    )
  )


def temporaries(length: int, bias_of) -> float:
  """Returns the megabytes of temporaries of a compiled program.

  Args:
    length: N.
    bias_of: makes a bias of the values of its distances.
  """

  def attend(values, query, key, value):
    return query_blocks.pruned_rows(
      attention.selective_attention,
      pruning.Selective(),
      *(query, key, value),
      budget=_KEPT,
      bias=bias_of(values),
      last=jnp.array([length - 1]),
    )

  heads = jax.ShapeDtypeStruct((1, length, _HEADS, _SIZE), jnp.float32)
  values = jax.ShapeDtypeStruct((_HEADS, _DISTANCES), jnp.float32)
  compiled = jax.jit(attend).lower(values, heads, heads, heads).compile()
  return round(compiled.memory_analysis().temp_size_in_bytes / 1e6, 1)


if __name__ == '__main__':
  main()
