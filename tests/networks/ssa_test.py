"""SSA's parameters, its formula, and the way into it from plain attention."""

import dataclasses
import functools

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention, network, ssa
from selective_t5x.config import files as config_files
from selective_t5x.nn.extensions import Heads
from tests.support import cached_models

compiled = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)
NAMES = [
  f'{of}_{term}' for of in Heads._fields for term in ('token', 'position')
]


class StartsPlain(ssa.SSA):
  starts_plain: bool = True


def arrays(seed=0):
  rng = np.random.default_rng(seed)
  return Heads(*rng.normal(size=(3, 2, 5, 2, 4)).astype(np.float32))


def initial(module):
  heads = arrays()
  return module.init(
    jax.random.key(0),
    jnp.zeros((2, 5, 16)),
    heads,
    heads,
    jnp.ones((1, 5), int),
    deterministic=True,
  )['params']


@pytest.mark.parametrize('name', NAMES)
def test_each_switch_is_one_parameter(name):
  switches = dict.fromkeys(NAMES, False) | {name: True}
  module = ssa.SSA(num_heads=2, head_dim=4, **switches)
  params = jax.eval_shape(lambda: initial(module))
  assert set(params) == {name}
  assert params[name].shape == ((8,) if name.endswith('token') else (1,))


def parameters(extension):
  """How many the paper's decoder of size d = 8 has."""
  config = network.DecoderConfig(
    8192, 512, attention_extension=extension, num_layers=8
  )
  tokens = jnp.zeros((1, 8), jnp.int32)
  shapes = jax.eval_shape(
    lambda: network.Decoder(config).init(
      jax.random.key(0), tokens, tokens, enable_dropout=False
    )
  )
  return sum(x.size for x in jax.tree.leaves(shapes['params']))


def test_it_adds_under_a_tenth_of_a_percent():
  plain = parameters(None)
  assert plain > 25e6
  added = parameters(ssa.SSA) - plain
  assert added == 8 * (512 + 1 + 512)
  assert added / plain < 0.001


def test_it_can_start_as_plain_attention():
  plain = cached_models.build('decoder', attention.causal_attention)
  module = network.Decoder(
    dataclasses.replace(plain.module.config, attention_extension=StartsPlain)
  )
  # A checkpoint's parameters, and SSA's of each layer at their start.
  params = jax.tree.map(lambda x: x, plain.params)
  for i in range(2):
    params[f'layers_{i}']['self_attention']['extension'] = {
      'query_token': jnp.zeros(16),
      'query_position': jnp.array([-10.0]),
      'value_token': jnp.zeros(16),
    }
  tempered = dataclasses.replace(plain, module=module, params=params)
  tokens = jnp.asarray(cached_models.TOKENS)
  wanted, got = (
    compiled(functools.partial(model.apply, mutable=False))(tokens)
    for model in (plain, tempered)
  )
  np.testing.assert_allclose(got, wanted, atol=2e-3)
  assert np.any(got != wanted)  # sigmoid(-10) * log(n) is not quite nothing.


def test_its_initial_values_are_those_of_its_start():
  for module, last_layer, alpha in (
    (ssa.SSA(num_heads=2, head_dim=4), 8**-0.5, -4.5),
    (ssa.SSA(num_heads=2, head_dim=4, initial_alpha=1.0), 8**-0.5, 1.0),
    (StartsPlain(num_heads=2, head_dim=4), 0.0, -10.0),
  ):
    params = initial(module)
    assert set(params) == {'query_token', 'query_position', 'value_token'}
    assert params['query_position'] == alpha
    size = np.std(
      np.concatenate([params['query_token'], params['value_token']])
    )
    np.testing.assert_allclose(size, last_layer, rtol=0.5)


def test_fine_tuning_finds_all_that_a_checkpoint_without_it_has():
  from t5x import state_utils

  gin.clear_config()
  try:
    gin.add_config_file_search_path(str(config_files.search_path()))
    gin.parse_config_file('gin/attention/ssa_finetune.gin')
    rules = gin.query_parameter('%ASSIGNMENT_MAP')
  finally:
    gin.clear_config()

  def state(**extension):
    layer = {'query': {'kernel': 1}, **extension}
    return {
      'target': {'decoder': {'layers_0': {'self_attention': layer}}},
      'state': {
        'step': 1,
        'param_states': {'decoder': {'layers_0': {'self_attention': layer}}},
      },
    }

  saved = state()
  wanted = state(extension={'query_token': 2})
  assert state_utils.apply_assignment_map(saved, wanted, rules) == saved
