"""The certified policy written from its definition, for tolerance 0.5 / 4."""

import math

import numpy as np


def _log_weights(view):
  """Returns key -> log of the bound on its weight, the largest of the heads."""
  norms = [np.linalg.norm(query, axis=1) for query in view.queries]
  largest = np.max(norms, axis=0)
  own = np.array(list(view.logits.values()))
  now = np.log(np.sum(np.exp(own), axis=0))
  newest = view.held[-1]
  sums = view.memory.setdefault('sums', {})
  sums[newest] = now
  least = np.min([sums[i] for i in range(newest + 1)], axis=0)
  return {
    j: max(
      view.scale * largest * np.linalg.norm(view.keys[j], axis=1)
      + view.bias_limit
      - view.masking[j]
      - least
    )
    for j in view.held
  }


def order(view):
  return {j: -x for j, x in _log_weights(view).items()}


def early(view):
  limit = math.log(0.5 / 4)
  return {j for j, x in _log_weights(view).items() if x <= limit}
