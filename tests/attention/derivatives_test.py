"""Derivatives of every order and mode: right, or refused in one line."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x.errors import UserError
from tests.attention import properties
from tests.attention.segments_test import FUNCTIONS, KERNELS
from tests.support import smoke

PACKED = properties.PACKED
FORWARD = 'has no forward-mode derivatives .*: expected reverse mode'
AGAIN = "pallas_.pu has first derivatives alone: expected .*'blocked'"


def loss(function, query):
  _, key, value = properties.arrays()
  out = function(query, key, value, segment_ids=PACKED)
  return jnp.sum(jnp.sin(3 * out))


def direction():
  return properties.arrays(seed=1)[0]


def forward(function):
  query = properties.arrays()[0]
  return jax.jvp(functools.partial(loss, function), (query,), (direction(),))[1]


def forward_jitted(function):
  return properties.compiled(lambda: forward(function))()


def linearized(function):
  query = properties.arrays()[0]
  return jax.linearize(functools.partial(loss, function), query)[1](direction())


def reverse_over_reverse(function):
  def slope(query):
    grad = jax.grad(functools.partial(loss, function))(query)
    return jnp.sum(grad * direction())

  return properties.compiled(jax.grad(slope))(properties.arrays()[0])


def forward_over_reverse(function):
  grad = jax.grad(functools.partial(loss, function))

  def along(query):
    return jax.jvp(grad, (query,), (direction(),))[1]

  return properties.compiled(along)(properties.arrays()[0])


def reverse_over_forward(function):
  def slope(query):
    along = functools.partial(loss, function)
    return jax.jvp(along, (query,), (direction(),))[1]

  return properties.compiled(jax.grad(slope))(properties.arrays()[0])


SECOND = (reverse_over_reverse, forward_over_reverse)


@pytest.mark.parametrize('derivative', SECOND)
def test_blocked_has_second_derivatives(derivative):
  np.testing.assert_allclose(
    derivative(FUNCTIONS['selective']['blocked']),
    derivative(FUNCTIONS['selective']['reference']),
    rtol=1e-3,
    atol=1e-3,
  )


@pytest.mark.parametrize('derivative', smoke.first(SECOND))
@pytest.mark.parametrize('group', ['causal', 'selective'])
@pytest.mark.parametrize('name', KERNELS)
def test_the_kernels_have_no_second_derivatives(name, group, derivative):
  with pytest.raises(UserError, match=AGAIN):
    derivative(FUNCTIONS[group][name])


@pytest.mark.parametrize(
  'derivative',
  smoke.first([forward_jitted, forward, linearized, reverse_over_forward]),
)
@pytest.mark.parametrize('name', ['blocked', *KERNELS])
@pytest.mark.parametrize('group', ['causal', 'selective'])
def test_forward_mode_is_refused(group, name, derivative):
  with pytest.raises(UserError, match=f'{name} {FORWARD}|{AGAIN}'):
    derivative(FUNCTIONS[group][name])


@pytest.mark.parametrize(
  'function',
  [FUNCTIONS['selective']['reference'], FUNCTIONS['window']['blocked']],
)
def test_what_is_written_out_has_all(function):
  wanted = np.sum(
    jax.grad(functools.partial(loss, function))(properties.arrays()[0])
    * direction()
  )
  for derivative in (forward_jitted, linearized):
    np.testing.assert_allclose(derivative(function), wanted, rtol=1e-3)
  np.testing.assert_allclose(
    reverse_over_forward(function),
    reverse_over_reverse(function),
    rtol=1e-3,
    atol=1e-3,
  )


@pytest.mark.parametrize('name', ['blocked', *KERNELS])
def test_gradients_pass_through_what_training_wraps_around(name):
  function = FUNCTIONS['selective'][name]
  _, key, value = properties.arrays()

  def layer(query):
    return function(query, key, value, segment_ids=PACKED)

  def looped(query):
    out, _ = jax.lax.scan(
      lambda x, _: (jax.checkpoint(layer)(x), None), query, None, 2
    )
    return jnp.sum(jnp.sin(out))

  def unrolled(query):
    return jnp.sum(jnp.sin(layer(layer(query))))

  query = properties.arrays()[0]
  np.testing.assert_allclose(
    properties.compiled(jax.grad(looped))(query),
    properties.compiled(jax.grad(unrolled))(query),
    rtol=1e-4,
    atol=1e-5,
  )


def test_gradients_of_several_rows_at_once():
  function = FUNCTIONS['selective']['blocked']

  def one(query, key, value):
    return function(
      query[None], key[None], value[None], segment_ids=PACKED[:1]
    )[0]

  def loss(inputs):
    return jnp.sum(jnp.sin(3 * jax.vmap(one)(*inputs)))

  def row_by_row(inputs):
    rows = zip(*inputs, strict=True)
    return sum(jnp.sum(jnp.sin(3 * one(*row))) for row in rows)

  inputs = properties.arrays()
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
    properties.compiled(jax.grad(loss))(inputs),
    properties.compiled(jax.grad(row_by_row))(inputs),
  )
