"""Rotary embeddings: products depend on differences of positions."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selective_t5x.attention.rotary import Rotary
from selective_t5x.errors import UserError


@settings(max_examples=25, deadline=None)
@given(
  st.integers(0, 500), st.integers(0, 500), st.integers(0, 500), st.integers(0)
)
def test_products_depend_on_the_difference(i, j, shift, seed):
  rng = np.random.default_rng(seed)
  query, key = rng.normal(size=(2, 1, 1, 1, 8))
  rotary = Rotary(theta=50.0)

  def product(i, j):
    one, two = (
      rotary.rotate(jnp.asarray(x, jnp.float32), jnp.array([[at]]))
      for x, at in ((query, i), (key, j))
    )
    return jnp.sum(one * two)

  np.testing.assert_allclose(
    product(i, j), product(i + shift, j + shift), atol=2e-3
  )


def test_a_rotation_keeps_lengths_and_position_0_rotates_nothing():
  x = np.random.default_rng(0).normal(size=(2, 5, 3, 6)).astype(np.float32)
  out = Rotary().rotate(jnp.asarray(x), jnp.arange(5)[None])
  np.testing.assert_allclose(out[:, 0], x[:, 0], atol=1e-6)
  np.testing.assert_allclose(
    np.linalg.norm(out, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5
  )
  assert np.max(np.abs(out - x)[:, 1:]) > 0.1


def test_frequencies_of_each_scaling():
  theta, size = 500000.0, 16
  plain = [theta ** (-2 * i / size) for i in range(8)]
  np.testing.assert_allclose(Rotary(theta).frequencies(size), plain, rtol=1e-5)
  np.testing.assert_allclose(
    Rotary(theta, 'linear', 4.0).frequencies(size),
    [f / 4 for f in plain],
    rtol=1e-5,
  )
  scaled = Rotary(theta, 'llama3', 8.0, 1.0, 4.0, 8192).frequencies(size)
  kinds = set()
  for got, f in zip(scaled, plain, strict=True):
    wavelength = 2 * math.pi / f
    if wavelength < 8192 / 4:
      kind, wanted = 'high', f
    elif wavelength > 8192:
      kind, wanted = 'low', f / 8
    else:
      kind, share = 'medium', (8192 / wavelength - 1) / 3
      wanted = (1 - share) * f / 8 + share * f
    kinds.add(kind)
    assert got == pytest.approx(wanted, rel=1e-5)
  assert kinds == {'high', 'low', 'medium'}


@pytest.mark.parametrize(
  'values, match',
  [
    (dict(theta=0.0), 'theta = 0.0: expected a positive number'),
    (dict(theta=math.nan), 'theta = nan'),
    (dict(scaling='llama4'), "scaling = 'llama4': .*nearest: llama3"),
    (dict(factor=0.5), 'factor = 0.5: expected a number of 1 or more'),
    (dict(high_freq_factor=1.0), 'expected a number above low_freq_factor'),
    (dict(original_length=1.5), 'original_length = 1.5'),
  ],
)
def test_a_bad_setting_is_named(values, match):
  with pytest.raises(UserError, match=f'network.Rotary.*{match}'):
    Rotary(**values)
