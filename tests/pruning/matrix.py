"""The policies under test. A new one adds a row, and passes all tests."""

import numpy as np

from selective_t5x import pruning


def _selective(view):
  return view.masking


def _h2o(view):
  recent = view.held[-((view.budget + 1) // 2) :]
  return {j: -view.attention[j] for j in view.held if j not in recent and j > 0}


def _tova(view):
  return {j: -view.weights[j] for j in view.held}


def _window(view):
  return {j: -j for j in view.held}


def _random(view):
  def mix(x):
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    return x ^ (x >> 16)

  start = mix(7) + view.layer
  return {j: mix((mix(start % 2**32) + j) % 2**32) >> 8 for j in view.held}


# Each with what it evicts by, the largest first, of the kept keys of loops.py,
# written from its definition.
POLICIES = {
  'selective': (pruning.Selective(), _selective),
  'h2o': (pruning.H2O(), _h2o),
  'tova': (pruning.TOVA(), _tova),
  'window': (pruning.Window(), _window),
  'random': (pruning.Random(seed=7), _random),
}
NAMES = list(POLICIES)

# Segments of rows of 12: whole; packed and padded; padded; all padding.
SEGMENTS = np.array(
  [
    [1] * 12,
    [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0],
    [1] * 7 + [0] * 5,
    [0] * 12,
  ]
)
