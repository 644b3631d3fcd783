"""The gin files of T5 build the published models; one file selects."""

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x.config import files as config_files
from selective_t5x.errors import UserError
from tests.support import smoke, whole

# Parameters of the published checkpoints.
PUBLISHED = {
  't5_1_1/small': 76_961_152,
  't5_1_1/base': 247_577_856,
  't5_1_1/large': 783_150_080,
  't5_1_1/xl': 2_849_757_184,
  't5_1_1/xxl': 11_135_332_352,
  't5_1_0/small': 60_506_624,
  't5_1_0/base': 222_903_552,
  't5_1_0/large': 737_668_096,
  't5_1_0/3b': 2_851_598_336,
  't5_1_0/11b': 11_307_321_344,
}
# What T5X's examples/decoder_only comes to; the comments in its gin files still
# count a bias for every layer.
DECODER_ONLY = {
  't5_decoder_only/base': 109_628_544,
  't5_decoder_only/large': 341_231_104,
  't5_decoder_only/xl': 1_223_527_424,
  't5_decoder_only/xxl': 4_762_310_656,
}
TINY = ['t5_1_1/tiny', 't5_1_0/tiny']
SURROUNDINGS = """
from __gin__ import dynamic_registration
import seqio
from t5x import optimizers
from tests.networks import t5_gin_test

# 32,000 pieces and 100 sentinels, as T5's own.
VOCABULARY = @seqio.PassThroughVocabulary()
seqio.PassThroughVocabulary.size = 32100
OPTIMIZER = @optimizers.adamw()
optimizers.adamw.learning_rate = 0.001
t5_gin_test.take.model = %MODEL
"""


def take(model):
  return model


@pytest.fixture(autouse=True)
def _fresh_gin():
  gin.clear_config()
  gin.add_config_file_search_path(str(config_files.search_path()))
  yield
  gin.clear_config()


def build(*files, bindings=()):
  gin.parse_config_files_and_bindings(
    files, [SURROUNDINGS, *bindings], skip_unknown=False
  )
  return gin.get_configurable(take)()


def count(config):
  """Counts the parameters that a config comes to."""
  width, joined = config.emb_dim, config.num_heads * config.head_dim
  tables = 1 if config.logits_via_embedding else 2
  attends = 4 * width * joined + width
  feed_forward = (len(config.mlp_activations) + 1) * width * config.mlp_dim
  feed_forward += width
  return (
    tables * config.vocab_size * width
    + config.num_encoder_layers * (attends + feed_forward)
    + config.num_decoder_layers * (2 * attends + feed_forward)
    + 2 * (32 * config.num_heads + width)  # relative biases, last norms
  )


def test_every_size_file_is_known():
  folder = config_files.gin_dir() / 'models'
  result = {
    str(path.relative_to(folder).with_suffix(''))
    for path in folder.glob('t5_*/*.gin')
  }
  assert result == {*PUBLISHED, *DECODER_ONLY, *TINY}


@pytest.mark.parametrize('size', PUBLISHED)
def test_every_size_has_its_published_number_of_parameters(size):
  config = build(f'gin/models/{size}.gin').module.config
  assert count(config) == PUBLISHED[size]
  assert config.attention_fn.__name__ == 'causal_attention'
  assert config.vocab_size == 32128


@pytest.mark.parametrize('size', TINY)
def test_a_model_has_the_parameters_that_were_counted(size):
  model = build(f'gin/models/{size}.gin')
  shapes = {'encoder_input_tokens': (2, 8), 'decoder_input_tokens': (2, 6)}
  variables = jax.eval_shape(
    lambda: model.get_initial_variables(jax.random.key(0), shapes)
  )
  leaves = jax.tree.leaves(variables['params'])
  assert sum(leaf.size for leaf in leaves) == count(model.module.config)


@pytest.mark.parametrize('size', smoke.first(DECODER_ONLY))
def test_decoder_only_sizes_are_those_of_t5xs_example(size):
  model = build(f'gin/models/{size}.gin', 'gin/attention/selective.gin')
  assert model.module.config.attention_fn.__name__ == 'selective_attention'
  shapes = {'decoder_input_tokens': (1, 4)}
  variables = jax.eval_shape(
    lambda: model.get_initial_variables(jax.random.key(0), shapes)
  )
  leaves = jax.tree.leaves(variables['params'])
  assert sum(leaf.size for leaf in leaves) == DECODER_ONLY[size]


def test_one_file_turns_selection_on_in_the_decoder_and_nowhere_else():
  inputs = jnp.array([[5, 9, 3, 7, 2, 8, 4, 1]])
  targets = jnp.array([[6, 6, 9, 2, 7, 1]])
  outputs, params = [], None
  for files in (
    [],
    ['gin/attention/selective.gin'],
    ['gin/attention/selective.gin', 'gin/attention/baseline.gin'],
  ):
    # At the published tiny size all logits are too small to select much.
    module = build(
      'gin/models/t5_1_1/tiny.gin',
      *files,
      bindings=['EMB_DIM = 32', 'HEAD_DIM = 16', 'NUM_LAYERS = 1'],
    ).module
    assert module.config.encoder_attention_fn.__name__ == 'full_attention'
    shifted = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
    batch = (inputs, shifted, targets)
    if params is None:
      params = whole.call(
        module.init, jax.random.key(0), *batch, enable_dropout=False
      )['params']
    outputs.append(
      whole.call(module.apply, {'params': params}, *batch, enable_dropout=False)
    )
    gin.clear_config()
  baseline, selective, baseline_again = outputs
  assert not np.allclose(baseline, selective, atol=1e-5)
  np.testing.assert_array_equal(baseline, baseline_again)


def test_the_memory_loss_file_needs_selection():
  memory_loss = 'gin/attention/memory_loss.gin'
  with pytest.raises(UserError, match='EncoderDecoder.memory_loss_weight'):
    build('gin/models/t5_1_1/tiny.gin', memory_loss)
  gin.clear_config()
  build(
    'gin/models/t5_1_1/tiny.gin', 'gin/attention/selective.gin', memory_loss
  )
  config = gin.operative_config_str()
  assert 'EncoderDecoder.memory_loss_weight = %MEMORY_LOSS_WEIGHT' in config
