"""The formulas of attention's variants, in nested loops, by the definition.

Each is given one segment of tokens alone and returns [n, H, D].
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass
class Segment:
  """One segment of n tokens in one layer, as a formula is given it.

  Attributes:
    x: [n, M], what the layer attends for.
    projected: query, key and value before normalisation, [n, H, D] each; with
      several queries a head, R, the first is [n, H R, D].
    query: as that.
    key: [n, H, D].
    value: [n, H, D].
    scale: multiplies the logits.
    bias: [H, n, n]; zeros where there is none.
    params: the extension's parameters, a tree; empty where there is none.
    layer: the layer's number, from 0.
  """

  x: np.ndarray
  projected: Sequence[np.ndarray]
  query: np.ndarray
  key: np.ndarray
  value: np.ndarray
  scale: float
  bias: np.ndarray
  params: Mapping
  layer: int

  @property
  def length(self):
    """n."""
    return len(self.x)

  def logit(self, h, i, j):
    """Of head h, query i and key j."""
    dot = sum(self.query[i, h] * self.key[j, h])
    return self.scale * dot + self.bias[h, i, j]


def softmax(segment, logit, sees=lambda i, j: j <= i):
  """Averages values by the softmax of logit(h, i, j) where i sees j."""
  out = np.zeros_like(segment.value)
  for h, i in np.ndindex(out.shape[1], segment.length):
    seen = [j for j in range(segment.length) if sees(i, j)]
    exps = [math.exp(logit(h, i, j)) for j in seen]
    for weight, j in zip(exps, seen, strict=True):
      out[i, h] += weight / sum(exps) * segment.value[j, h]
  return out


def baseline(segment):
  return softmax(segment, segment.logit)


def selective(segment, asks, relu=True, protect_bos=True, protect_self=True):
  """Selection by asks(segment, h, k, j): what k masks of j for head h."""

  @functools.cache
  def score(h, k, j):
    if (protect_self and j == k) or (protect_bos and j == 0) or j > k:
      return 0.0
    score = asks(segment, h, k, j)
    return max(score, 0.0) if relu else score

  def masked(h, i, j):
    return segment.logit(h, i, j) - sum(score(h, k, j) for k in range(i))

  return softmax(segment, masked)


def head(number):
  return lambda segment, h, k, j: segment.logit(number, k, j)


def of_each(segment, h, k, j):
  return segment.logit(h, k, j)


def mean(segment, h, k, j):
  heads = segment.query.shape[1]
  return sum(segment.logit(g, k, j) for g in range(heads)) / heads


def of_groups(groups, number=0):
  """The head of this number in each group selects for its group."""

  def asks(segment, h, k, j):
    size = segment.query.shape[1] // groups
    return segment.logit(h // size * size + number, k, j)

  return asks


def bilinear(groups):
  def asks(segment, h, k, j):
    heads = segment.query.shape[1]
    size = segment.query.shape[2]
    form = slice(*(h // (heads // groups) * size + np.array([0, size])))
    query = segment.x[k] @ segment.params['query']['kernel'][:, form]
    key = segment.x[j] @ segment.params['key']['kernel'][:, form]
    return query @ key / math.sqrt(size) + segment.bias[0, k, j]

  return asks


def window(segment, size, keep_first):
  return softmax(
    segment,
    segment.logit,
    lambda i, j: i - size < j <= i or (keep_first and j == 0),
  )


def strided(segment, stride):
  return softmax(
    segment,
    segment.logit,
    lambda i, j: j <= i and (i - j <= stride or (i - j) % stride == 0),
  )


def tempered(segment, **terms):
  """The segment with SSA's temperatures; terms default to the gin file's."""
  terms = {'query': 'token position', 'key': '', 'value': 'token'} | terms
  changed = {}
  for (name, terms_of), raw in zip(
    terms.items(), segment.projected, strict=True
  ):
    changed[name] = np.array(getattr(segment, name))
    for i in range(segment.length):
      t = 1.0
      if 'token' in terms_of:
        flat = raw[i].reshape(-1)
        # gelu, by its tanh form.
        inner = math.sqrt(2 / math.pi) * (flat + 0.044715 * flat**3)
        gelu = flat * (1 + np.tanh(inner)) / 2
        t += math.tanh(gelu @ segment.params[f'{name}_token'])
      if 'position' in terms_of:
        share = 1 / (1 + math.exp(-segment.params[f'{name}_position'][0]))
        t += share * math.log(i + 1)
      changed[name][i] *= t
  return dataclasses.replace(segment, **changed)


def forgetting(segment):
  params = segment.params
  gates = segment.x @ params['kernel']['kernel'] + params['bias']
  gates = 1 / (1 + np.exp(-gates))

  def faded(h, i, j):
    passed = math.prod(gates[k, h] for k in range(j + 1, i + 1))
    return segment.logit(h, i, j) + math.log(passed)

  return softmax(segment, faded)


def _gate(segment):
  """The number of each token, [n]."""
  params = segment.params
  return (segment.x @ params['kernel']['kernel'] + params['bias'])[:, 0]


def retention(segment):
  betas = 1 / (1 + np.exp(-_gate(segment)))

  def faded(h, i, j):
    left = 1 if j == 0 else betas[j] ** (i - j)
    return segment.logit(h, i, j) + math.log(left)

  return softmax(segment, faded)


def delayed_eviction(segment, delay):
  leaves = _gate(segment) > 0

  def sees(i, j):
    return j <= i and (j == 0 or i - j < delay or not leaves[j])

  return softmax(segment, segment.logit, sees)


def differential(segment):
  size = segment.query.shape[-1]
  half = size // 2
  # A head is two of half the size; T5 has its scale in the kernels.
  scale = 1.0 if segment.scale == 1 else half**-0.5
  first, second = (
    baseline(
      dataclasses.replace(
        segment,
        query=segment.query[..., part],
        key=segment.key[..., part],
        scale=scale,
      )
    )
    for part in (slice(half), slice(half, size))
  )
  learned = segment.params
  initial = 0.8 - 0.6 * math.exp(-0.3 * segment.layer)
  share = initial + sum(
    sign * math.exp(learned[f'share_query_{i}'] @ learned[f'share_key_{i}'])
    for i, sign in ((1, 1), (2, -1))
  )
  out = first - share * second
  out /= np.sqrt(np.mean(out**2, axis=-1, keepdims=True) + 1e-5)
  return (1 - initial) * learned['norm']['scale'] * out


def differential_v2(segment):
  first, second = (
    baseline(dataclasses.replace(segment, query=segment.query[:, part::2]))
    for part in (0, 1)
  )
  share = segment.x @ segment.params['share']['kernel']
  return first - second / (1 + np.exp(-share))[..., None]


def stick_breaking(segment, remainder=None, norm=False):
  out = np.zeros_like(segment.value)
  learned = segment.params
  for h, i in np.ndindex(out.shape[1], segment.length):
    left = 1.0
    for j in reversed(range(i)):
      taken = left / (1 + math.exp(-segment.logit(h, i, j)))
      out[i, h] += taken * segment.value[j, h]
      left -= taken
    if remainder == 'value':
      out[i, h] += left * segment.value[i, h]
    if remainder == 'bias':
      out[i, h] += left * learned['remainder_bias'][h]
    if norm:
      centred = out[i, h] - np.mean(out[i, h])
      out[i, h] = centred / math.sqrt(np.var(out[i, h]) + 1e-5)
      out[i, h] = out[i, h] * learned['norm_scale'][h] + learned['norm_bias'][h]
  return out
