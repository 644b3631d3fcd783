"""Budgets and policies that cannot be are refused in one line."""

import dataclasses

import gin
import jax
import jax.numpy as jnp
import pytest

from selective_t5x import attention, network, pruning, t5_network
from selective_t5x.config import files as config_files
from selective_t5x.errors import UserError
from selective_t5x.nn import settings
from tests.config.gin_models_test import SURROUNDINGS, take

FILES = sorted(
  path.stem for path in (config_files.gin_dir() / 'pruning').glob('*.gin')
)


@pytest.mark.parametrize('budgets', [1, 0, -3, 2.0, True, '8', None, [2, 1]])
def test_a_budget_is_an_integer_of_two_or_more(budgets):
  with pytest.raises(UserError, match='expected integers of 2 or more, got'):
    pruning.Pruning(pruning.Window(), budgets)


def test_a_policy_is_one():
  for policy in (None, pruning.Window, 'window'):
    with pytest.raises(UserError, match=r'policy = .*@pruning\.Selective\(\)'):
      pruning.Pruning(policy, 8)


def decoder(**settings):
  return network.DecoderConfig(8, 8, num_layers=3, **settings)


def t5(**settings):
  return t5_network.T5Config(8, num_decoder_layers=3, **settings)


@pytest.mark.parametrize('config', [decoder, t5])
def test_budgets_of_another_model_are_refused(config):
  def prune(budgets):
    return config(
      attention_fn=attention.selective_attention,
      pruning=pruning.Pruning(pruning.Selective(), budgets),
    )

  with pytest.raises(UserError, match=r'2 budgets, \[4, 8\], .* has 3 layers'):
    prune([4, 8])
  assert prune([4, 8, 2]).pruning.of_layers(3) == (4, 8, 2)
  assert prune(4).pruning.of_layers(3) == (4, 4, 4)
  with pytest.raises(UserError, match=r'@pruning\.Pruning\(\) or None'):
    dataclasses.replace(prune(4), pruning=pruning.Selective())
  with pytest.raises(UserError, match='causal_attention.* does not select'):
    dataclasses.replace(prune(4), attention_fn=attention.causal_attention)
  searched = dataclasses.replace(
    prune([4, 8, 2]).pruning, found_for=settings.sizes(prune(4))
  )
  taken = dataclasses.replace(prune(4), pruning=searched)
  with pytest.raises(UserError, match='size 8, this one has .* vocab_size 9'):
    dataclasses.replace(taken, vocab_size=9)


def test_a_prefix_that_sees_itself_is_refused():
  config = network.DecoderConfig(
    8, 8, 8, 1, 8, 1, 8, pruning=pruning.Pruning(pruning.Window(), 2)
  )
  tokens = jnp.ones((1, 4), int)
  with pytest.raises(UserError, match='inputs_bidirectional_attention = False'):
    jax.eval_shape(
      lambda: network.Decoder(config).init(
        jax.random.key(0),
        tokens,
        tokens,
        decoder_causal_attention=tokens,
        enable_dropout=False,
      )
    )


@pytest.fixture
def fresh_gin():
  gin.clear_config()
  gin.add_config_file_search_path(str(config_files.search_path()))
  yield
  gin.clear_config()


def test_every_policy_has_a_gin_file():
  policies = {p.__name__.lower() for p in pruning.Policy.__subclasses__()}
  assert policies == set(FILES)


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('size', ['sizes/d3', 't5_1_1/tiny'])
def test_a_gin_file_prunes_any_model(name, size, fresh_gin):
  files = [
    f'gin/models/{size}.gin',
    'gin/attention/selective.gin',
    f'gin/pruning/{name}.gin',
  ]
  bindings = [SURROUNDINGS, 'CACHE_BUDGETS = 8']
  gin.parse_config_files_and_bindings(files, bindings, skip_unknown=False)
  config = gin.get_configurable(take)().module.config
  assert type(config.pruning.policy).__name__.lower() == name
  assert config.pruning.budgets == 8
  saved = gin.config_str()
  gin.clear_config()
  gin.parse_config(saved)
  assert gin.get_configurable(take)().module.config.pruning == config.pruning


def test_a_gin_file_of_budgets_is_checked(fresh_gin):
  files = ['gin/models/sizes/d3.gin', 'gin/pruning/window.gin']
  for budgets, message in [
    ('[4, 8]', '2 budgets, .* 3 layers'),
    ('1', '2 or more, got 1'),
  ]:
    with gin.unlock_config():
      gin.clear_config()
      gin.parse_config_files_and_bindings(
        files, [SURROUNDINGS, f'CACHE_BUDGETS = {budgets}'], skip_unknown=False
      )
    with pytest.raises(UserError, match=message):
      gin.get_configurable(take)()
