import math

import jax
import numpy as np
import pytest

from t5x import utils


def _at(step, **kwargs):
  schedule = utils.create_learning_rate_scheduler(**kwargs)
  return float(jax.jit(schedule)(step))


@pytest.mark.parametrize(
  'factors, step, expected',
  [
    ('constant', 5, 2.0),
    ('linear_warmup', 25, 0.25),
    ('linear_warmup', 400, 1.0),
    ('constant * linear_warmup', 0, 1e-8),
    ('rsqrt_decay', 400, 0.05),
    ('rsqrt_decay', 4, 0.1),
    ('rsqrt_normalized_decay', 400, 0.5),
    ('decay_every', 21, 0.25),
    ('cosine_decay', 100, 1.0),
    ('cosine_decay', 150, 0.5),
    ('linear_decay', 50, 1.0),
    ('constant * linear_warmup * cosine_decay', 125, 2 * 0.853553391),
  ],
)
def test_factors(factors, step, expected):
  got = _at(
    step,
    factors=factors,
    base_learning_rate=2.0,
    warmup_steps=100,
    steps_per_decay=10,
    steps_per_cycle=100,
    decay_factor=0.5,
  )
  np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize('factors', ['linear_warmup', 'linear_decay'])
@pytest.mark.parametrize('step', [0, 1])
def test_a_warmup_of_no_steps_is_none(factors, step):
  settings = dict(factors=factors, base_learning_rate=1.0, decay_factor=0.0)
  assert _at(step, warmup_steps=0, **settings) == 1.0
  assert _at(step, warmup_steps=1, **settings) == max(step, np.float32(1e-8))


def test_papers_schedule_ends_near_zero_and_never_wraps_around():
  rates = [
    _at(
      step,
      factors='constant * linear_warmup * cosine_decay',
      base_learning_rate=1.0,
      warmup_steps=10,
      steps_per_cycle=90,
    )
    for step in range(100)
  ]
  assert rates[10] == 1.0
  assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))
  assert math.isclose(
    rates[99], 0.5 * (1 + math.cos(math.pi * 89 / 90)), rel_tol=1e-3
  )


def test_floor_and_offset():
  assert _at(0, factors='linear_warmup') == np.float32(1e-8)
  assert (
    _at(150, factors='linear_warmup', warmup_steps=100, step_offset=100) == 0.5
  )


def test_unknown_factor_names_the_known_ones():
  with pytest.raises(ValueError, match='linear_warmup'):
    utils.create_learning_rate_scheduler(factors='constant * warmup')
