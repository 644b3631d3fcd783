"""The policies under test. A new one adds a row, and passes all tests."""

import numpy as np

from selective_t5x import pruning
from tests.pruning import certificates


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


def _snapkv(view):
  votes = {
    j: sum(weights.get(j, 0.0) for weights in view.history[-3:])
    for j in view.held
  }
  pooled = {
    j: max(votes[k] for k in view.held if abs(j - k) <= 1) for j in view.held
  }
  recent = min(3, -(-view.budget // 2))
  newest = view.held[-1]
  return {j: -pooled[j] for j in view.held if newest - j >= recent}


def _keydiff(view):
  heads = range(len(view.keys[0]))

  def direction(j, head):
    return view.keys[j][head] / np.linalg.norm(view.keys[j][head])

  def cosine(j, head):
    anchor = sum(direction(k, head) for k in view.held) / len(view.held)
    return direction(j, head) @ anchor / np.linalg.norm(anchor)

  return {j: np.mean([cosine(j, head) for head in heads]) for j in view.held}


def _expected_attention(view):
  queries = np.stack(view.queries)
  mean, variance = np.mean(queries, axis=0), np.var(queries, axis=0)
  uses = []
  for head in range(queries.shape[1]):
    expected = {}
    for j in view.held:
      key = view.scale * view.keys[j][head]
      logit = mean[head] @ key + variance[head] @ key**2 / 2
      expected[j] = np.exp(logit - view.masking[j])
    uses.append(
      {
        j: (x / sum(expected.values()) + 0.3) * view.value_norms[j][head]
        for j, x in expected.items()
      }
    )
  return {j: -np.mean([use[j] for use in uses]) for j in view.held}


def _threshold(view):
  return view.masking


def _early_threshold(view):
  return {j for j, f in view.masking.items() if f >= 1.5}


# Each with what it evicts by, the largest first, of the kept keys of loops.py,
# written from its definition.
POLICIES = {
  'selective': (pruning.Selective(), _selective),
  'h2o': (pruning.H2O(), _h2o),
  'tova': (pruning.TOVA(), _tova),
  'window': (pruning.Window(), _window),
  'random': (pruning.Random(seed=7), _random),
  'snapkv': (pruning.SnapKV(window=3, kernel=3), _snapkv),
  'keydiff': (pruning.KeyDiff(), _keydiff),
  'expectedattention': (
    pruning.ExpectedAttention(epsilon=0.3),
    _expected_attention,
  ),
  'threshold': (pruning.Threshold(limit=1.5), _threshold),
  'certified': (
    pruning.Certified(tolerance=0.5, horizon=4),
    certificates.order,
  ),
}
# What leaves the cache of a policy that drops keys early, room or not.
EARLY = {'threshold': _early_threshold, 'certified': certificates.early}
NAMES = list(POLICIES)
# Policies whose heads keep keys of their own, with plain attention alone: their
# loops are in pool_test.py.
PER_HEAD = {'adakv': pruning.AdaKV(window=3, floor=0.3)}

# Segments of rows of 12: whole; packed and padded; padded; all padding.
SEGMENTS = np.array(
  [
    [1] * 12,
    [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0],
    [1] * 7 + [0] * 5,
    [0] * 12,
  ]
)
