"""Heads that keep keys of their own keep what nested loops keep."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention, pruning
from selective_t5x.errors import UserError
from tests.pruning import decoding_test
from tests.pruning.matrix import PER_HEAD, SEGMENTS

BATCH, LENGTH = SEGMENTS.shape
HEADS, SIZE = 2, 4
POLICY = PER_HEAD['adakv']


@functools.cache
def arrays():
  """Queries, keys, values and a bias; head 1 attends to few keys."""
  rng = np.random.default_rng(0)
  heads = 2 * rng.normal(size=(3, BATCH, LENGTH, HEADS, SIZE))
  heads[0, :, :, 1] *= 3
  heads = np.where((SEGMENTS == 0)[..., None, None], np.nan, heads)
  return heads, rng.normal(size=(1, HEADS, LENGTH, LENGTH))


@functools.cache
def compiled(policy=POLICY):
  @functools.partial(
    jax.jit, compiler_options={'xla_backend_optimization_level': 0}
  )
  def run(query, key, value, segment_ids, bias, budget):
    return pruning.pruned_attention(
      attention.causal_attention,
      policy,
      query,
      key,
      value,
      budget=budget,
      segment_ids=segment_ids,
      bias=bias,
    )

  return run


def of_segment(logits, budget, window, floor):
  """Returns {(query, head): keys} for logits [H, N, N] of one segment."""
  heads, length, _ = logits.shape
  held = {head: [] for head in range(heads)}
  history, kept = [], {}
  recent = math.ceil(floor * budget - 1e-4)
  for i in range(length):
    for head in range(heads):
      held[head].append(i)
    while sum(map(len, held.values())) > budget * heads:
      votes = {
        (head, j): sum(w.get((head, j), 0.0) for w in history[-window:])
        for head in range(heads)
        for j in held[head]
        if j != 0 and i - j >= recent
      }
      # The fewest votes; of equal ones the oldest, then the first head.
      head, j = min(votes, key=lambda e: (votes[e], e[1], e[0]))
      held[head].remove(j)
    weights = {}
    for head in range(heads):
      exps = np.exp(logits[head, i, held[head]])
      for j, w in zip(held[head], exps / np.sum(exps), strict=True):
        weights[head, j] = w
      kept[i, head] = list(held[head])
    history.append(weights)
  return kept


def wanted(query, key, bias, budget):
  """Returns bool[B, H, N, N]."""
  logits = np.einsum('bihd,bjhd->bhij', query, key) * SIZE**-0.5 + bias
  kept = np.zeros((BATCH, HEADS, LENGTH, LENGTH), bool)
  for b in range(BATCH):
    for segment in {*SEGMENTS[b]} - {0}:
      (inside,) = np.nonzero(SEGMENTS[b] == segment)
      cut = logits[b][:, inside][:, :, inside]
      for (i, head), keys in of_segment(cut, budget, 3, 0.3).items():
        kept[b, head, inside[i], inside[keys]] = True
  return logits, kept


@pytest.mark.parametrize('budget', [2, 3, 4, 6, 10, 12, 13])
def test_heads_keep_what_nested_loops_keep(budget, float64):
  (query, key, value), bias = arrays()
  got = compiled()(*map(jnp.asarray, arrays()[0]), SEGMENTS, bias, budget)
  logits, kept = wanted(query, key, bias, budget)
  np.testing.assert_array_equal(got.kept, kept)
  for b, i, head in np.ndindex(BATCH, LENGTH, HEADS):
    (keys,) = np.nonzero(kept[b, head, i])
    out = np.zeros(SIZE)
    if len(keys):
      exps = np.exp(logits[b, head, i, keys])
      out = exps / np.sum(exps) @ value[b, keys, head]
    np.testing.assert_allclose(got.out[b, i, head], out, atol=1e-9)


def test_a_head_that_needs_more_keys_takes_them_from_another(float64):
  heads, bias = arrays()
  got = compiled()(*map(jnp.asarray, heads), SEGMENTS, bias, 6)
  shares = np.sum(got.kept[0], axis=2)
  # Every query has the whole pool once it is full, and heads differ.
  assert np.all(np.sum(shares, axis=0)[6:] == 2 * 6)
  assert np.any(shares[0] != shares[1])
  # Two of the last keys, and the first, of each head.
  assert np.min(shares[:, 6:]) >= 3
  for i in range(2, LENGTH):
    assert np.all(got.kept[0, :, i, [0, i - 1, i]])


@pytest.mark.parametrize('kind', ['decoder', 't5'])
def test_the_pool_is_as_large_as_the_budgets(kind):
  cache = decoding_test.empty_cache(
    decoding_test.build(kind, 'adakv', dtype='float32')
  )
  entries = decoding_test.BATCH * 2 * sum(decoding_test.BUDGETS)
  assert decoding_test.size(cache, 'cached_key') == entries * 8 * 4
  assert decoding_test.size(cache, 'cached_value') == entries * 8 * 4
  total = entries * 4 * (2 * 8 + 2 + 3) + decoding_test.BATCH * 4
  leaves = decoding_test.leaves(cache)
  assert sum(leaf.nbytes for leaf in leaves.values()) == total


def test_a_budget_of_the_length_prunes_nothing(float64):
  heads, bias = arrays()
  query, key, value = map(jnp.asarray, heads)
  got = compiled()(query, key, value, SEGMENTS, bias, LENGTH)
  out = attention.causal_attention(
    query, key, value, segment_ids=jnp.asarray(SEGMENTS), bias=bias
  )
  np.testing.assert_allclose(got.out, out, atol=1e-9)


def test_a_head_cannot_select_for_others_that_keep_other_keys():
  (query, key, value), _ = arrays()
  with pytest.raises(UserError, match=r'AdaKV .* ATTENTION = @attention\.caus'):
    pruning.pruned_attention(
      attention.selective_attention, POLICY, query, key, value, budget=3
    )


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'window': 0}, r'AdaKV\.window = 0: expected an integer of 1 or more'),
    ({'floor': 0}, r'AdaKV\.floor = 0: expected a number above 0'),
    ({'floor': 0.6}, r'floor = 0\.6: .* at most 0\.5'),
  ],
)
def test_settings_are_checked(settings, message):
  with pytest.raises(UserError, match=message):
    pruning.AdaKV(**settings)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: pruning.SnapKV(window=0), r'SnapKV\.window = 0'),
    (lambda: pruning.SnapKV(kernel=4), 'kernel = 4: expected an odd integer'),
    (lambda: pruning.ExpectedAttention(epsilon=-1), r'epsilon = -1: expected'),
  ],
)
def test_settings_of_the_other_policies_are_checked(make, message):
  with pytest.raises(UserError, match=message):
    make()
