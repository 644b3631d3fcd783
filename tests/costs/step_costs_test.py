import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from selective_t5x import attention
from selective_t5x.costs import step_costs

ONE = 2 * 32**3
SQUARE = jnp.ones((32, 32))


def flops(function, *args):
  return step_costs.matmul_flops(jax.make_jaxpr(function)(*args).jaxpr)


def loop(rounds):
  return lambda x: jax.lax.scan(
    lambda c, _: (jnp.tanh(c @ x), None), x, None, length=rounds
  )[0]


def test_a_program_without_loops_is_what_xla_counts():
  def mlp(w, x):
    return jnp.sum(jnp.tanh(x @ w) @ w)

  args = jnp.ones((32, 32)), jnp.ones((16, 32))
  step = jax.jit(jax.value_and_grad(mlp))
  # Three products forward and back for each of two, but no gradient of x.
  assert flops(step, *args) == 5 * 2 * 16 * 32 * 32
  xla = step.lower(*args).cost_analysis()['flops']
  assert flops(step, *args) == pytest.approx(xla, rel=0.05)


def test_every_round_of_a_loop_counts_and_the_dearest_branch():
  assert flops(loop(7), SQUARE) == 7 * ONE
  assert flops(jax.grad(lambda x: loop(7)(x).sum()), SQUARE) == 3 * 7 * ONE

  def branches(x):
    return jax.lax.cond(x[0, 0] > 0, loop(2), loop(5), x)

  assert flops(branches, SQUARE) == 5 * ONE
  assert flops(jax.checkpoint(jax.jit(branches)), SQUARE) == 5 * ONE


def test_what_cannot_be_counted_is_none():
  def until(x):
    return jax.lax.while_loop(lambda c: c[0, 0] < 9, lambda c: c @ x, x)

  assert flops(until, SQUARE) is None
  image = jnp.ones((1, 3, 8, 8))
  assert flops(lambda x: jax.lax.conv(x, x, (1, 1), 'SAME'), image) is None


def test_a_kernel_counts_at_every_place_of_its_grid():
  def kernel(x, out):
    out[...] = x[...] @ x[...]

  call = pl.pallas_call(kernel, grid=(3,), out_shape=SQUARE)
  assert flops(jax.jit(call), SQUARE) == 3 * ONE


@pytest.mark.parametrize('implementation', ['reference', 'blocked'])
def test_attention_costs_no_less_than_its_causal_half(implementation):
  x = jnp.ones((2, 256, 4, 64))

  def attend(x):
    return attention.selective_attention(x, x, x, implementation=implementation)

  whole = 2 * 2 * 2 * 4 * 256 * 256 * 64
  assert whole / 2 < flops(attend, x) < 2 * whole


@pytest.mark.parametrize('gradients', [False, True])
def test_attention_that_drops_keys_costs_what_all_keys_would(gradients):
  def attend(forget_below):
    def out(x):
      return attention.selective_attention(
        x, x, x, implementation='blocked', forget_below=forget_below
      ).sum()

    return jax.grad(out) if gradients else out

  x = jnp.ones((1, 1024, 4, 16))
  assert flops(attend(2.0**-24), x) == flops(attend(0), x)
