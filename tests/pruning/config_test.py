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
from tests.pruning.matrix import PER_HEAD
from tests.support import cached_models

FILES = sorted(
  path.stem
  for path in (config_files.gin_dir() / 'pruning').glob('*.gin')
  if path.stem != 'share'  # It comes after one of the others.
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
  assert prune([4, 8, 2]).pruning.of_layers(3, 64) == (4, 8, 2)
  assert prune(4).pruning.of_layers(3, 64) == (4, 4, 4)
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


def test_heads_that_share_keys_cannot_keep_keys_of_their_own():
  with pytest.raises(UserError, match='num_kv_heads = 4: expected None with'):
    network.DecoderConfig(
      8, 8, num_kv_heads=4, pruning=pruning.Pruning(pruning.AdaKV(), 8)
    )


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


def test_a_budget_follows_the_length_of_the_rows():
  share = pruning.Share(1 / 16, least=4)
  assert [share.of(n) for n in (1, 64, 65, 2048)] == [4, 4, 5, 128]
  assert pruning.Share(0.1).of(30) == 3
  both = pruning.Pruning(pruning.Window(), [share, 7])
  assert both.of_layers(2, 2048) == (128, 7)
  for wrong, message in [
    ({'share': 0}, r'Share\.share = 0: expected a number above 0'),
    ({'share': 1.5}, 'at most 1'),
    ({'share': 0.5, 'least': 1}, r'Share\.least = 1: expected an integer of 2'),
  ]:
    with pytest.raises(UserError, match=message):
      pruning.Share(**wrong)


@pytest.mark.parametrize('length', [8, 10])
def test_a_cache_of_a_share_has_the_size_of_its_rows(length):
  model = cached_models.pruned(
    cached_models.build('decoder', attention.causal_attention),
    pruning.Pruning(pruning.Window(), pruning.Share(0.5)),
  )
  ones = jnp.ones((1, length), int)
  shapes = jax.eval_shape(lambda: model.apply(ones, decode=True)[1]['cache'])
  sizes = {
    leaf.shape[1]
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    if path[-1].key == 'cached_key'
  }
  assert sizes == {length // 2}


@pytest.fixture
def fresh_gin():
  gin.clear_config()
  gin.add_config_file_search_path(str(config_files.search_path()))
  yield
  gin.clear_config()


def test_every_policy_has_a_gin_file():
  def every(policy):
    for subclass in policy.__subclasses__():
      yield subclass.__name__.lower()
      yield from every(subclass)

  assert set(every(pruning.Policy)) == set(FILES)


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('size', ['sizes/d3', 't5_1_1/tiny'])
def test_a_gin_file_prunes_any_model(name, size, fresh_gin):
  files = [
    f'gin/models/{size}.gin',
    f'gin/attention/{"baseline" if name in PER_HEAD else "selective"}.gin',
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


def test_a_share_is_bound_in_gin(fresh_gin):
  gin.parse_config_files_and_bindings(
    [
      'gin/models/sizes/d3.gin',
      'gin/pruning/window.gin',
      'gin/pruning/share.gin',
    ],
    [SURROUNDINGS, 'CACHE_SHARE = 0.25'],
    skip_unknown=False,
  )
  config = gin.get_configurable(take)().module.config
  assert config.pruning.of_layers(3, 100) == (25, 25, 25)


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
