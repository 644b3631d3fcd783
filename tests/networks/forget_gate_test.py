"""Forget gates: their formula, their start, and a whole layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import forget_gate
from selective_t5x.nn.extensions import Heads

X = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)
HEADS = Heads(*np.zeros((3, 2, 5, 2, 4), np.float32))


def gates(module, params):
  extended = module.apply(
    {'params': params}, X, HEADS, HEADS, jnp.ones((1, 5)), deterministic=True
  )
  assert extended.heads is HEADS and not extended.given
  return extended.kept['log_forget']


@pytest.mark.parametrize('initial_bias', [0.0, 6.0])
def test_a_gate_is_a_sigmoid_of_the_input(initial_bias):
  module = forget_gate.ForgetGate(
    num_heads=2, head_dim=4, initial_bias=initial_bias
  )
  variables = module.init(
    jax.random.key(0), X, HEADS, HEADS, jnp.ones((1, 5)), deterministic=True
  )
  params = variables['params']
  kernel, bias = params['kernel']['kernel'], params['bias']
  assert kernel.shape == (16, 2)
  np.testing.assert_array_equal(bias, np.full(2, initial_bias))
  axes = variables['params_axes']
  assert axes['kernel']['kernel_axes'].names == ('embed', 'heads')
  assert axes['bias_axes'].names == ('heads',)
  wanted = 1 / (1 + np.exp(-(X @ kernel + bias)))
  np.testing.assert_allclose(np.exp(gates(module, params)), wanted, rtol=1e-5)


def test_gates_are_float32_in_a_bfloat16_network():
  module = forget_gate.ForgetGate(num_heads=2, head_dim=4, dtype=jnp.bfloat16)
  params = {'kernel': {'kernel': jnp.ones((16, 2))}, 'bias': jnp.zeros(2)}
  assert gates(module, params).dtype == jnp.float32
