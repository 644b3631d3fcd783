"""Learning rates of some parameters' own."""

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from selective_t5x import gin_functions
from selective_t5x.config import files as config_files
from selective_t5x.errors import UserError

PARAMS = {'a': {'x': jnp.ones(2), 'slow': jnp.ones(2)}, 'b': jnp.ones(())}
GRADIENTS = jax.tree.map(lambda x: 0.5 * jnp.ones_like(x), PARAMS)


def steps(optimizer, count=3):
  params, state = PARAMS, optimizer.init(PARAMS)
  for _ in range(count):
    updates, state = optimizer.update(GRADIENTS, state, params)
    params = optax.apply_updates(params, updates)
  return params, state


def test_a_factor_multiplies_the_steps_of_what_it_matches():
  adam = optax.adamw(0.1, weight_decay=0.3)
  undecayed = optax.adamw(0.1, weight_decay=0.0)
  plain, state = steps(adam)
  changed, also = steps(
    gin_functions.with_learning_rate_factors(adam, {'a/x': 5.0})
  )
  for name in ('slow',):
    np.testing.assert_array_equal(changed['a'][name], plain['a'][name])
  np.testing.assert_array_equal(changed['b'], plain['b'])
  moved = steps(undecayed)[0]['a']['x'] - 1
  np.testing.assert_allclose(changed['a']['x'] - 1, 5 * moved, rtol=1e-5)
  # Checkpoints with and without factors are alike.
  assert jax.tree.structure(state) == jax.tree.structure(also)


def test_without_factors_it_is_the_optimiser_itself():
  adam = optax.adamw(0.1)
  assert gin_functions.with_learning_rate_factors(adam, {}) is adam


@pytest.mark.parametrize('factor', [0, -1.0, None, True, '3'])
def test_a_factor_that_is_none_is_refused(factor):
  with pytest.raises(UserError, match=r"\['a'\] = .*: expected a number above"):
    gin_functions.with_learning_rate_factors(optax.sgd(0.1), {'a': factor})


def test_an_expression_that_matches_nothing_is_refused():
  rates = gin_functions.with_learning_rate_factors(
    optax.sgd(0.1), {'a/.*': 2.0, 'c': 3.0}
  )
  with pytest.raises(UserError, match="no parameter matches 'c'"):
    rates.init(PARAMS)


def test_alpha_moves_in_fine_tuning():
  """From -10, where SSA starts in fine-tuning, within 200 steps."""
  gin.clear_config()
  try:
    gin.add_config_file_search_path(str(config_files.search_path()))
    gin.parse_config('TRAIN_STEPS = 200\nINITIAL_CHECKPOINT_PATH = "x"')
    gin.parse_config_files_and_bindings(
      [
        'gin/optimizers/adamw.gin',
        'gin/attention/ssa.gin',
        'gin/attention/ssa_finetune.gin',
      ],
      ['LEARNING_RATE = 0.001', 'WARMUP_STEPS = 20'],
    )
    chained, alone = (
      gin.get_configurable('optimizers.chain')(**settings)
      for settings in ({}, {'transformations': [optax.adamw(0.001)]})
    )
  finally:
    gin.clear_config()
  layer = {
    'query': {'kernel': jnp.ones((2, 2))},
    'extension': {'query_position': jnp.array([-10.0])},
  }
  params = {'decoder': {'layers_0': {'self_attention': layer}}}

  def loss(params):
    own = params['decoder']['layers_0']['self_attention']
    alpha = own['extension']['query_position']
    # The logits of position 256, of which sharper ones are better.
    t = 1 + jax.nn.sigmoid(alpha) * jnp.log(256.0)
    return jnp.sum(jnp.exp(-t)) + jnp.sum(own['query']['kernel'] ** 2)

  def trained(optimizer):
    state = optimizer.create(params)
    step = jax.jit(lambda s: s.apply_gradient(jax.grad(loss)(s.target)))
    for _ in range(200):
      state = step(state)
    own = state.target['decoder']['layers_0']['self_attention']
    return own['extension']['query_position'][0], own['query']['kernel']

  alpha, kernel = trained(chained)
  stuck, _ = trained(alone)
  assert alpha > -7.5 and stuck < -9.7
  # The others have the rate of all.
  assert 0.85 < kernel[0, 0] < 0.99
