"""The scan over whole rows keeps what nested loops keep."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention, pruning
from selective_t5x.errors import UserError
from tests.attention import loops as attention_loops
from tests.pruning import loops, matrix
from tests.pruning.matrix import EARLY, POLICIES, SEGMENTS

BATCH, LENGTH = SEGMENTS.shape
HEADS, SIZE = 2, 4
# One type for all, so that each policy is compiled once.
pytestmark = pytest.mark.usefixtures('float64')
every_policy = pytest.mark.parametrize('name', matrix.NAMES)


def arrays(seed=0, aligned=False):
  """Queries, keys and values, NaN where there is padding.

  Aligned queries and keys have about one direction, so all mask each other.
  """
  rng = np.random.default_rng(seed)
  shape = (3, BATCH, LENGTH, HEADS, SIZE)
  x = 2 * rng.normal(size=shape)
  if aligned:
    x[:2] = 2 * rng.normal(size=(BATCH, 1, HEADS, SIZE)) + 0.1 * x[:2]
  return [
    jnp.asarray(one) for one in np.where(dead()[..., None, None], np.nan, x)
  ]


def dead():
  return SEGMENTS == 0


def bias(size=3):
  shape = (1, HEADS, LENGTH, LENGTH)
  return size * np.random.default_rng(1).normal(size=shape)


@functools.cache
def pruned(name, attention_fn=attention.selective_attention):
  """Compiled once for all budgets: they are traced."""
  # What is compiled runs a few times only.
  options = {'xla_backend_optimization_level': 0}

  @functools.partial(jax.jit, compiler_options=options)
  def run(query, key, value, segment_ids, bias, budget):
    return pruning.pruned_attention(
      attention_fn,
      POLICIES[name][0],
      query,
      key,
      value,
      budget=budget,
      layer=3,
      segment_ids=segment_ids,
      bias=bias,
      memory_tau=1.0,
    )

  return run


def logits_and_masking(query, key, bias_size=3):
  """A - F and F by loops; [B, H, N, N] and [B, N, N]."""
  zeros = [np.nan_to_num(x) for x in (query, key)]
  logits = np.einsum('bihd,bjhd->bhij', *zeros) * SIZE**-0.5 + bias(bias_size)
  masking = attention_loops.masking_loop(logits[:, 0], SEGMENTS)
  return logits - masking[:, None], masking


@pytest.mark.parametrize(
  ('name', 'aligned'),
  [
    *((name, False) for name in matrix.NAMES),
    *((name, True) for name in EARLY),
  ],
)
def test_what_is_kept_is_what_nested_loops_keep(name, aligned):
  query, key, value = arrays(aligned=aligned)
  size = 0.1 if aligned else 3
  logits, masking = logits_and_masking(query, key, size)
  for budget in range(2, LENGTH + 2):
    got = pruned(name)(query, key, value, SEGMENTS, bias(size), budget)
    wanted = loops.kept_loop(
      POLICIES[name][1],
      logits=logits,
      masking=masking,
      segment_ids=SEGMENTS,
      budget=budget,
      layer=3,
      heads=(query, key, value),
      scale=SIZE**-0.5,
      early=EARLY.get(name),
      bias_limit=np.max(bias(size), axis=(0, 2, 3)),
    )
    np.testing.assert_array_equal(got.kept, wanted, str(budget))
    check_output(got.out, logits, wanted, value)


def check_output(out, logits, kept, value):
  for b, i in np.ndindex(BATCH, LENGTH):
    (keys,) = np.nonzero(kept[b, i])
    for head in range(HEADS):
      wanted = np.zeros(SIZE)
      if len(keys):
        weights = loops.softmax(logits[b, head : head + 1, i], list(keys))
        wanted = sum(weights[j] * value[b, j, head] for j in keys)
      np.testing.assert_allclose(out[b, i, head], wanted, atol=1e-9)


@pytest.mark.parametrize('name', [n for n in matrix.NAMES if n not in EARLY])
def test_some_budgets_evict_and_every_query_keeps_itself_and_the_first(name):
  query, key, value = arrays()
  kept = pruned(name)(query, key, value, SEGMENTS, bias(), 4).kept
  np.testing.assert_array_equal(
    np.sum(kept, axis=2)[:2],
    [
      [1, 2, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4],
      [1, 2, 3, 4, 4, 1, 2, 3, 4, 4, 4, 0],
    ],
  )
  assert np.all(kept[0, :, 0]) and np.all(kept[1, 5:11, 5])
  assert not np.any(kept[1, 5:11, :5])
  np.testing.assert_array_equal(np.diagonal(kept, axis1=1, axis2=2), ~dead())


@pytest.mark.parametrize('name', [n for n in matrix.NAMES if n not in EARLY])
@pytest.mark.parametrize('budget', [LENGTH, 10**6])
def test_a_budget_of_the_length_prunes_nothing(name, budget):
  query, key, value = arrays()
  got = pruned(name)(query, key, value, SEGMENTS, bias(), budget)
  out, memory, masking = attention.selective_attention(
    query,
    key,
    value,
    segment_ids=jnp.asarray(SEGMENTS),
    bias=bias(),
    memory_tau=1.0,
    return_masking=True,
  )
  np.testing.assert_allclose(got.out, out, atol=1e-6)
  np.testing.assert_allclose(got.memory, memory, atol=1e-6)
  np.testing.assert_allclose(got.masking, masking, atol=1e-6)


@pytest.mark.parametrize(
  'name', ['h2o', 'random', 'snapkv', 'expectedattention']
)
def test_a_packed_row_keeps_what_each_segment_keeps_alone(name):
  query, key, value = arrays()
  got = pruned(name)(query, key, value, SEGMENTS, bias(), 3)
  for where in (slice(0, 5), slice(5, 11)):
    alone = pruned(name)(
      *(x[1:2, where] for x in (query, key, value)),
      SEGMENTS[1:2, where],
      bias()[:, :, where, where],
      3,
    )
    np.testing.assert_array_equal(got.kept[1:2, where, where], alone.kept)
    np.testing.assert_allclose(got.out[1:2, where], alone.out, atol=1e-9)


@pytest.mark.parametrize('name', list(EARLY))
def test_early_drops_leave_room(name):
  query, key, value = arrays(aligned=True)
  kept = pruned(name)(query, key, value, SEGMENTS, bias(0.1), LENGTH).kept
  held = np.sum(kept[0], axis=1)
  # Something was dropped, not all, and no budget forced it.
  assert 2 < held[-1] < LENGTH
  np.testing.assert_array_equal(np.diagonal(kept, axis1=1, axis2=2), ~dead())
  assert np.all(kept[0, :, 0]) and np.all(kept[1, 5:11, 5])


def test_budgets_can_be_mapped():
  query, key, value = arrays()
  budgets = jnp.array([2, 5, 9])
  many = jax.vmap(pruned('selective'), in_axes=(None,) * 5 + (0,))(
    query, key, value, SEGMENTS, bias(), budgets
  )
  for budget, kept, out in zip(budgets, many.kept, many.out, strict=True):
    one = pruned('selective')(query, key, value, SEGMENTS, bias(), budget)
    np.testing.assert_array_equal(kept, one.kept)
    np.testing.assert_allclose(out, one.out, atol=1e-6)


def test_the_settings_of_selection_count():
  query, key, value = arrays()
  settings = [{}, {'selection_head': 1}, {'selection_bias': False}]
  kept = []
  for setting in settings:
    function = functools.partial(attention.selective_attention, **setting)
    got = pruned('selective', function)(query, key, value, SEGMENTS, bias(), 4)
    kept.append(got.kept)
  for i, j in [(0, 1), (0, 2), (1, 2)]:
    assert np.any(kept[i] != kept[j])


@pytest.mark.parametrize('name', ['h2o', 'window'])
def test_rivals_prune_a_baseline_too(name):
  query, key, value = arrays()
  got = pruned(name, attention.causal_attention)(
    query, key, value, SEGMENTS, bias(), 4
  )
  assert got.masking is None and got.memory is None
  logits = logits_and_masking(query, key)
  wanted = loops.kept_loop(
    POLICIES[name][1],
    logits=logits[0] + logits[1][:, None],
    masking=0 * logits[1],
    segment_ids=SEGMENTS,
    budget=4,
    layer=3,
  )
  np.testing.assert_array_equal(got.kept, wanted)


def test_random_depends_on_seed_and_layer():
  segments = jnp.ones((1, 40), int)

  def last(seed, layer):
    policy = pruning.Random(seed=seed)
    kept = pruning.keep_mask(policy, segments, budget=9, layer=layer)
    return kept.keys[0, -1]

  layers = jnp.arange(50)
  left = jax.jit(jax.vmap(lambda layer: last(0, layer)))(layers)
  assert len(np.unique(left, axis=0)) == 50
  other = jax.jit(jax.vmap(lambda layer: last(-1, layer)))(layers)
  assert np.all(np.any(left != other, axis=1))
  # Early keys are as likely to be left as late ones.
  early = np.sum(left[:, 1:20]) / (50 * 7)
  assert 0.4 < early < 0.6


def test_what_cannot_be_pruned_is_named():
  query, key, value = arrays()
  with pytest.raises(UserError, match='does not select'):
    pruning.pruned_attention(
      attention.causal_attention,
      pruning.Selective(),
      query,
      key,
      value,
      budget=3,
    )
  with pytest.raises(UserError, match='inputs_bidirectional_attention'):
    pruning.pruned_attention(
      attention.causal_attention,
      pruning.Window(),
      query,
      key,
      value,
      budget=3,
      prefix=jnp.ones_like(SEGMENTS),
    )
