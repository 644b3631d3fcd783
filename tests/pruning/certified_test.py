"""A certificate bounds what was dropped, by a softmax over all keys."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention, pruning
from selective_t5x.errors import UserError
from selective_t5x.nn import certificates
from tests.pruning import decoding_test
from tests.support import cached_models

BATCH, LENGTH, HEADS, SIZE = 2, 14, 2, 3
SEGMENTS = np.array([[1] * LENGTH, [1] * 5 + [2] * 7 + [0] * 2])


@functools.cache
def compiled(tolerance, horizon):
  @functools.partial(
    jax.jit, compiler_options={'xla_backend_optimization_level': 0}
  )
  def run(query, key, value, bias, budget):
    return pruning.pruned_attention(
      attention.selective_attention,
      pruning.Certified(tolerance=tolerance, horizon=horizon),
      query,
      key,
      value,
      budget=budget,
      segment_ids=jnp.asarray(SEGMENTS),
      bias=bias,
    )

  return run


def softmax(logits, seen):
  """Weights [B, H, N, N] of what bool[B, N, N] sees, written out."""
  weights = np.zeros_like(logits)
  for b, head, i in np.ndindex(logits.shape[:3]):
    (keys,) = np.nonzero(seen[b, i])
    if len(keys):
      exps = np.exp(logits[b, head, i, keys] - max(logits[b, head, i, keys]))
      weights[b, head, i, keys] = exps / np.sum(exps)
  return weights


@hypothesis.settings(
  deadline=None,
  max_examples=30,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
  seed=st.integers(0, 2**31),
  size=st.sampled_from([0.3, 1.0, 3.0, 8.0]),
  growth=st.sampled_from([0.5, 1.0, 1.5]),
  budget=st.integers(2, LENGTH),
)
@pytest.mark.parametrize('tolerance', [1e-3, 0.9])
def test_dropped_keys_weigh_no_more_than_the_certificate(
  float64, tolerance, seed, size, growth, budget
):
  rng = np.random.default_rng(seed)
  heads = size * rng.normal(size=(3, BATCH, LENGTH, HEADS, SIZE))
  # Later queries may be larger than earlier ones, or smaller.
  heads[0] *= growth ** np.arange(LENGTH)[:, None, None]
  bias = rng.normal(size=(1, HEADS, LENGTH, LENGTH))
  got = compiled(tolerance, 4)(*map(jnp.asarray, heads), bias, budget)

  query, key, value = heads
  logits = np.einsum('bihd,bjhd->bhij', query, key) * SIZE**-0.5 + bias
  logits -= np.asarray(got.masking)[:, None]
  seen = (
    (SEGMENTS[:, :, None] == SEGMENTS[:, None])
    & (SEGMENTS[:, :, None] > 0)
    & np.tri(LENGTH, dtype=bool)
  )
  weights = softmax(logits, seen)
  dropped = seen & ~np.asarray(got.kept)
  lost = np.einsum('bhij,bij->bih', weights, dropped)
  certificate = np.asarray(got.certificate)
  real = SEGMENTS > 0
  assert np.all(lost[real] <= certificate[real] * (1 + 1e-9) + 1e-12)
  assert np.all((certificate[real] >= 0) & (certificate[real] <= 1))

  whole = np.einsum('bhij,bjhd->bihd', weights, value)
  distance = np.linalg.norm(whole - np.asarray(got.out), axis=3)
  largest = np.max(np.linalg.norm(value, axis=3), axis=1)[:, None]
  assert np.all((distance <= 2 * certificate * largest + 1e-9)[real])
  # Where nothing was dropped, the certificate says so.
  none = ~np.any(dropped, axis=2)
  assert np.all(certificate[none & real] == 0)


def test_a_certificate_is_close_to_what_was_lost(float64):
  """A bound of one for everything would pass the test above."""
  rng = np.random.default_rng(0)
  # Every token masks all earlier ones.
  heads = 0.1 * rng.normal(size=(3, BATCH, LENGTH, HEADS, SIZE))
  heads[:2] += 2
  got = compiled(1e-3, 4)(
    *map(jnp.asarray, heads), np.zeros((1, HEADS, 1, 1)), LENGTH
  )
  dropped = ~np.asarray(got.kept[0]) & np.tri(LENGTH, dtype=bool)
  assert np.any(dropped)
  certificate = np.asarray(got.certificate[0])
  assert np.all(certificate < 1e-3) and np.max(certificate) > 0


@pytest.mark.parametrize('kind', ['decoder', 't5'])
def test_steps_give_the_certificates_of_whole_rows(kind, float64):
  model = decoding_test.build(kind, 'certified')
  tokens = jnp.asarray(cached_models.TOKENS)

  _, changed = model.apply(tokens, mutable=['intermediates'])
  whole = np.asarray(certificates.by_layer(changed['intermediates']))
  assert whole.shape == (2, *tokens.shape, 2)
  assert np.max(whole) > 0

  @jax.jit
  def step(cache, now):
    _, changed = model.apply(
      now[:, None], cache=cache, decode=True, mutable=['cache', 'intermediates']
    )
    return changed

  cache = decoding_test.empty_cache(model)
  for i, now in enumerate(cached_models.TOKENS.T):
    changed = step(cache, jnp.asarray(now))
    cache = changed['cache']
    got = certificates.by_layer(changed['intermediates'])
    np.testing.assert_allclose(got[:, :, 0], whole[:, :, i], atol=1e-9)


def test_decoding_returns_the_certificate_of_each_token(float64):
  model = decoding_test.build('decoder', 'certified')
  prompts = jnp.asarray(cached_models.TOKENS[:, 1:5])
  tokens, weights = jax.jit(
    lambda prompts: certificates.decode(model.module, model.params, prompts, 5)
  )(prompts)
  assert tokens.shape == (3, 5) and weights.shape == (3, 5, 2, 2)
  # The whole row of what was decoded predicts the same, as surely.
  row = jnp.concatenate([jnp.zeros((3, 1), int), prompts, tokens], axis=1)
  logits, changed = model.apply(row[:, :-1], mutable=['intermediates'])
  np.testing.assert_array_equal(tokens, jnp.argmax(logits[:, -5:], axis=-1))
  whole = certificates.by_layer(changed['intermediates'])
  np.testing.assert_allclose(
    weights, jnp.moveaxis(whole, 0, 2)[:, -5:], atol=1e-9
  )
  assert np.max(weights) > 0


def test_certificates_that_nothing_sows_are_named():
  with pytest.raises(ValueError, match=r'with pruning\.Certified'):
    certificates.by_layer({'layers_0': {'memory': (jnp.ones(3),)}})


def test_what_a_full_cache_evicts_is_counted():
  model = decoding_test.build('decoder', 'certified', dtype='float32')
  cache = decoding_test.empty_cache(model)
  for now in cached_models.TOKENS.T:
    _, cache = decoding_test.stepper(model)(cache, jnp.asarray(now))
  leaves = decoding_test.leaves(cache)

  def of(name):
    return np.stack(
      [np.asarray(x) for path, x in leaves.items() if path[-1] == name]
    )

  forced, dropped = of('cached_dropped_forced'), of('cached_dropped_count')
  held = np.stack(
    [
      np.sum(np.asarray(x), axis=1)
      for path, x in leaves.items()
      if path[-1] == 'cached_held'
    ]
  )
  np.testing.assert_array_equal(dropped + held, cached_models.LENGTH)
  assert np.all(forced <= dropped) and np.any(forced > 0)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'relu': False}, r'may fall, .* expected relu = True'),
    ({'selection_head': 'per_head'}, 'have several F'),
  ],
)
def test_attention_without_a_bound_is_refused(settings, message):
  function = functools.partial(attention.selective_attention, **settings)
  x = jnp.ones((1, 3, 2, 4))
  with pytest.raises(UserError, match=message):
    pruning.pruned_attention(function, pruning.Certified(), x, x, x, budget=2)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: pruning.Certified(tolerance=0), r'tolerance = 0: expected a numb'),
    (lambda: pruning.Certified(tolerance=1), 'above 0 and below 1'),
    (lambda: pruning.Certified(horizon=0), r'horizon = 0: expected an integer'),
    (lambda: pruning.Threshold(limit=0), r'limit = 0: expected a positive'),
  ],
)
def test_settings_are_checked(make, message):
  with pytest.raises(UserError, match=message):
    make()
