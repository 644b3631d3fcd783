"""Biases by distance as the GPU kernels read them.

Distances are the same in all rows of tiles. So a window of the biases of one
block of queries for the keys around it serves them all, and a tile of biases is
a slice of it, whose loads are contiguous. Ours.
"""

import jax
import numpy as np

from selective_t5x.attention.distance_bias import toeplitz
from selective_t5x.attention.gpu.blocks import Inputs
from selective_t5x.attention.gpu.plan import Plan


def with_windows(plan: Plan, inputs: Inputs, query_axis: int) -> Inputs:
  """Returns the inputs with windows in place of the numbers for distances.

  Args:
    plan: the plan of the call.
    inputs: with f32[H, R] and f32[G, R] as biases, or None; see `Inputs`.
    query_axis: 0 for windows f32[H, Q, W], 1 for f32[H, W, Q]; W is
      `Plan.window`.
  """

  def spread(numbers):
    return None if numbers is None else _window(plan, numbers, query_axis)

  return inputs._replace(
    bias=spread(inputs.bias), selection_bias=spread(inputs.selection_bias)
  )


def _window(plan: Plan, numbers, query_axis: int) -> jax.Array:
  queries, keys = plan.block.query, plan.window
  # The key minus the query of an entry, modulo the strip's length.
  apart = np.arange(queries + keys)
  apart = np.where(apart < keys, apart, apart - len(apart))
  distance = np.clip(plan.before - apart, -plan.ahead, plan.behind)
  window = toeplitz(numbers[:, distance + plan.ahead], queries, keys)
  return window if query_axis == 0 else window.swapaxes(1, 2)
