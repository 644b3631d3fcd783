"""Learned gates: their formulas, their gradients, and real eviction by them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention, pruning
from selective_t5x.errors import UserError
from selective_t5x.nn import eviction_gates
from selective_t5x.nn.extensions import Heads
from tests.pruning import decoding_test
from tests.support import cached_models, smoke

X = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)
HEADS = Heads(*np.zeros((3, 2, 5, 2, 4), np.float32))
POSITION = jnp.arange(1, 6)[None]


def extended(module, params, key=None, deterministic=True):
  return module.apply(
    {'params': params},
    X,
    HEADS,
    HEADS,
    POSITION,
    deterministic=deterministic,
    rngs={} if key is None else {'dropout': key},
  )


def initial(module):
  return module.init(
    jax.random.key(0), X, HEADS, HEADS, POSITION, deterministic=True
  )


@pytest.mark.parametrize(
  'kind', [eviction_gates.RetentionGate, eviction_gates.EvictionGate]
)
def test_tokens_start_alike_near_plain_attention(kind):
  module = kind(num_heads=2, head_dim=4)
  variables = initial(module)
  params = variables['params']
  assert params['kernel']['kernel'].shape == (16, 1)
  axes = variables['params_axes']
  assert axes['kernel']['kernel_axes'].names == ('embed', 'kv')
  got = extended(module, params)
  assert got.heads is HEADS
  np.testing.assert_array_equal(got.kept['rate_position'][1], POSITION[0])
  np.testing.assert_array_equal(got.given['query_position'][1], POSITION[0])
  assert np.max(got.kept['rates']) < 0.01


def random_params(module):
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda p: rng.normal(size=p.shape).astype(np.float32),
    initial(module)['params'],
  )


def numbers(params):
  return (X @ params['kernel']['kernel'] + params['bias'])[..., 0]


def test_retention_is_the_log_of_a_sigmoid():
  module = eviction_gates.RetentionGate(num_heads=2, head_dim=4)
  params = random_params(module)
  got = extended(module, params)
  betas = 1 / (1 + np.exp(-numbers(params)))
  np.testing.assert_allclose(np.exp(-got.kept['rates']), betas, rtol=1e-5)
  assert got.given['delay'] is None


def test_a_key_leaves_if_that_is_likelier():
  module = eviction_gates.EvictionGate(num_heads=2, head_dim=4, delay=3)
  params = random_params(module)
  got = extended(module, params)
  leaves = numbers(params) > 0
  assert 0 < np.sum(leaves) < leaves.size
  np.testing.assert_array_equal(
    got.kept['rates'], np.where(leaves, eviction_gates.EVICTED, 0)
  )
  assert got.given['delay'] == 3


def test_samples_in_training_leave_as_often_as_alpha_says():
  module = eviction_gates.EvictionGate(num_heads=2, head_dim=4, temperature=0.3)
  params = random_params(module)
  keys = jax.random.split(jax.random.key(0), 2000)
  rates = jax.vmap(
    lambda key: extended(module, params, key, False).kept['rates']
  )(keys)
  # a > 1 / 2 just where the noise exceeds the logit of 1 - alpha.
  often = np.mean(np.asarray(rates) > np.log(2), axis=0)
  alpha = 1 / (1 + np.exp(-numbers(params)))
  np.testing.assert_allclose(often, alpha, atol=0.05)


@pytest.mark.parametrize('delay', [None, 2])
def test_gradients_reach_the_rates(delay, float64):
  rng = np.random.default_rng(2)
  query, key, value, cotangent = jnp.asarray(rng.normal(size=(4, 1, 6, 2, 4)))
  rates = jnp.asarray(rng.uniform(0.1, 1, size=(1, 6)))
  position = jnp.arange(1, 7)[None]

  def loss(rates):
    out, memory = attention.gated_attention(
      query,
      key,
      value,
      rates=rates,
      rate_position=position,
      query_position=position,
      delay=delay,
      memory_tau=9.0,
    )
    return jnp.sum(out * cotangent) + jnp.sum(memory)

  grad = jax.grad(loss)(rates)
  for j in range(6):
    step = np.zeros((1, 6))
    step[0, j] = 1e-6
    slope = (loss(rates + step) - loss(rates - step)) / 2e-6
    np.testing.assert_allclose(grad[0, j], slope, atol=1e-6)
  # The first key stays; the last has no later query in reach.
  assert grad[0, 0] == 0 and grad[0, 5] == 0 and np.all(grad[0, 1:4] != 0)


class Leaving(eviction_gates.EvictionGate):
  """Leaves after two tokens; about half of the tokens leave."""

  initial_bias: float = 0.0
  delay: int = 2


class Fading(eviction_gates.RetentionGate):
  initial_bias: float = 0.0


CASES = {
  'retention': (Fading, pruning.Selective()),
  'delayed': (Leaving, pruning.Threshold(limit=4.0)),
}


@functools.cache
def build(kind, name, budgets=decoding_test.BUDGETS, dtype='float64'):
  extension, policy = CASES[name]
  model = cached_models.build(kind, attention.gated_attention, dtype, extension)
  return cached_models.pruned(model, pruning.Pruning(policy, budgets))


@pytest.mark.parametrize('kind', smoke.first(['decoder', 't5']))
@pytest.mark.parametrize('name', list(CASES))
def test_prompts_and_steps_are_the_parallel_form(kind, name, float64):
  model = build(kind, name)
  wanted = decoding_test.parallel(model)(jnp.array(decoding_test.BUDGETS))
  outs = decoding_test.decode_from(
    model, decoding_test.prefill(model), decoding_test.LENGTHS
  )
  after = np.arange(cached_models.LENGTH) >= decoding_test.LENGTHS[:, None]
  np.testing.assert_allclose(outs[after], wanted[after], atol=1e-6)


def test_a_full_cache_evicts_the_least_retention(float64):
  rng = np.random.default_rng(3)
  query, key, value = jnp.asarray(rng.normal(size=(3, 1, 8, 2, 4)))
  betas = rng.uniform(0.2, 0.99, size=8)
  position = jnp.arange(1, 9)[None]
  kept = pruning.pruned_attention(
    attention.gated_attention,
    pruning.Selective(),
    query,
    key,
    value,
    budget=3,
    rates=jnp.asarray(-np.log(betas))[None],
    rate_position=position,
    query_position=position,
  ).kept[0]
  held = []
  for i in range(8):
    held.append(i)
    if len(held) > 3:
      held.remove(min(held[1:-1], key=lambda j: betas[j] ** (i - j)))
    assert np.flatnonzero(kept[i]).tolist() == held


def test_a_key_that_leaves_is_out_of_the_cache_after_the_delay():
  model = build('decoder', 'delayed', budgets=10, dtype='float32')
  cache = decoding_test.empty_cache(model)
  for i, tokens in enumerate(cached_models.TOKENS.T):
    _, cache = decoding_test.stepper(model)(cache, jnp.asarray(tokens))
    for path, held in decoding_test.leaves(cache).items():
      if path[-1] != 'cached_held':
        continue
      at = cache
      for name in path[:-1]:
        at = at[name]
      age = i - np.asarray(at['cached_key_position'])
      leaves = np.asarray(at['cached_rates']) > 0
      first = np.asarray(at['cached_key_position']) == 0
      assert not np.any(held & leaves & ~first & (age >= 2))
  # Room is left, as some keys are gone.
  total = [
    np.sum(np.asarray(x))
    for path, x in decoding_test.leaves(cache).items()
    if path[-1] == 'cached_held'
  ]
  assert 0 < sum(total) < 2 * 3 * 10


@pytest.mark.parametrize(
  ('kind', 'settings', 'message'),
  [
    ('EvictionGate', {'delay': 0}, r'delay = 0: expected an integer of 1'),
    ('EvictionGate', {'temperature': 0}, r'temperature = 0: expected a posit'),
    ('RetentionGate', {'initial_bias': 'a'}, r"initial_bias = 'a': expected"),
  ],
)
def test_settings_are_checked(kind, settings, message):
  module = getattr(eviction_gates, kind)(num_heads=2, head_dim=4, **settings)
  with pytest.raises(UserError, match=message):
    initial(module)


def test_shapes_of_gates_are_checked():
  x = jnp.ones((1, 3, 2, 4))
  with pytest.raises(ValueError, match=r'rates .* \[1, 3\], got \[1, 2\]'):
    attention.gated_attention(
      x,
      x,
      x,
      rates=jnp.ones((1, 2)),
      rate_position=jnp.ones((1, 3), int),
      query_position=jnp.ones((1, 3), int),
    )
