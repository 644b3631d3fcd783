"""The gin files of models and attention build what they say."""

import dataclasses
import functools
import math
import types

import gin
import jax
import numpy as np
import pytest

from selective_t5x import attention, network
from selective_t5x.config import files as config_files
from selective_t5x.errors import UserError
from tests.support import whole

SIZES = sorted(
  path.stem for path in (config_files.gin_dir() / 'models/sizes').glob('*.gin')
)
TOKENS = np.array([[5, 9, 3, 7, 2, 8]], np.int32)
# What an experiment adds to a size.
SURROUNDINGS = """
from __gin__ import dynamic_registration
import seqio
from t5x import optimizers
from tests.config import gin_models_test

VOCABULARY = @seqio.ByteVocabulary()
OPTIMIZER = @optimizers.adamw()
optimizers.adamw.learning_rate = 0.001
gin_models_test.take.model = %MODEL
"""
SMALL = ['NUM_LAYERS = 1', 'EMB_DIM = 8', 'HEAD_DIM = 4', 'MLP_DIM = 8']


def take(model):
  return model


@pytest.fixture(autouse=True)
def _fresh_gin():
  gin.add_config_file_search_path(str(config_files.search_path()))


def build(*files, bindings=()):
  gin.parse_config_files_and_bindings(
    files, [SURROUNDINGS, *bindings], skip_unknown=False
  )
  return gin.get_configurable(take)()


@pytest.mark.parametrize('size', SIZES)
def test_every_size_builds_a_model_with_baseline_attention(size):
  config = build(f'gin/models/sizes/{size}.gin').module.config
  assert config.attention_fn.__name__ == 'causal_attention'
  assert config.vocab_size == 384  # 259 bytes, rounded up to 128s.


def test_sizes_are_the_papers():
  assert {'d2', 'd3', 'd8', 'd12', 'd28', 'synthetic'} <= set(SIZES)
  for size in SIZES:
    config = build(f'gin/models/sizes/{size}.gin').module.config
    if size.startswith('d'):
      d = int(size[1:])
      assert (config.emb_dim, config.num_heads) == (64 * d, d)
      assert (config.head_dim, config.num_layers) == (64, d)
      assert config.mlp_dim == 64 * math.ceil(8 * d / 3)
    gin.clear_config()


def logits_of(model, params=None):
  module = model.module
  if params is None:
    params = whole.call(
      module.init, jax.random.key(0), TOKENS, TOKENS, enable_dropout=False
    )['params']
  out = whole.call(
    module.apply, {'params': params}, TOKENS, TOKENS, enable_dropout=False
  )
  return params, out


def test_one_file_turns_selection_on_and_one_macro_names_the_head():
  size = 'gin/models/sizes/synthetic.gin'
  selective = 'gin/attention/selective.gin'
  outputs, params = [], None
  for files, head in [([], 0), ([selective], 0), ([selective], 3)]:
    bindings = [*SMALL, *([f'SELECTION_HEAD = {head}'] if head else [])]
    params, out = logits_of(build(size, *files, bindings=bindings), params)
    outputs.append(out)
    gin.clear_config()
  baseline, head_0, head_3 = outputs
  assert not np.allclose(baseline, head_0, atol=1e-5)
  assert not np.allclose(head_0, head_3, atol=1e-5)

  _, again = logits_of(
    build(size, selective, 'gin/attention/baseline.gin', bindings=SMALL), params
  )
  np.testing.assert_array_equal(again, baseline)


def test_a_head_that_is_not_there_is_named():
  model = build(
    'gin/models/sizes/synthetic.gin',
    'gin/attention/selective.gin',
    bindings=[*SMALL, 'SELECTION_HEAD = 4'],
  )
  with pytest.raises(UserError, match='integer from 0 to 3, there are 4 heads'):
    logits_of(model)


def test_the_memory_loss_file_needs_selection():
  size = 'gin/models/sizes/synthetic.gin'
  memory_loss = 'gin/attention/memory_loss.gin'
  with pytest.raises(UserError, match='does not select'):
    build(size, memory_loss)
  gin.clear_config()
  build(size, 'gin/attention/selective.gin', memory_loss)
  assert gin.query_parameter('%MEMORY_LOSS_WEIGHT') == 0.1
  config = gin.operative_config_str()
  assert 'LanguageModel.memory_loss_weight = %MEMORY_LOSS_WEIGHT' in config


def test_a_saved_config_builds_the_same_model():
  model = build('gin/models/sizes/d2.gin', 'gin/attention/selective.gin')
  saved = gin.config_str()
  gin.clear_config()
  gin.parse_config(saved)
  again = gin.get_configurable(take)()
  assert again.module.config.emb_dim == model.module.config.emb_dim == 128
  assert again.module.config.attention_fn.__name__ == 'selective_attention'
  assert gin.config_str() == saved


def test_macros_make_the_decoder_a_llama():
  """Every macro of decoder.gin and of rotary.gin reaches the network."""
  config = build(
    'gin/models/sizes/synthetic.gin',
    'gin/architectures/rotary.gin',
    'gin/attention/selective_per_group.gin',
    bindings=[
      *SMALL,
      'NUM_HEADS = 4',
      'NUM_KV_HEADS = 2',
      'QK_NORM = False',
      'QKV_BIAS = True',
      'OUT_BIAS = True',
      'MLP_BIAS = True',
      "MLP_ACTIVATIONS = ('gelu', 'linear')",
      'NORM_EPSILON = 1e-3',
      'NORM_ADDS_ONE = True',
      'EMBEDDING_SCALE = 3.0',
      'LOGITS_VIA_EMBEDDING = True',
      'LOGITS_SCALE = 0.5',
      'BOS_ID = 7',
      'ROPE_THETA = 50.0',
      "ROPE_SCALING = 'llama3'",
      'ROPE_FACTOR = 4.0',
      'ROPE_LOW_FREQ_FACTOR = 2.0',
      'ROPE_HIGH_FREQ_FACTOR = 5.0',
      'ROPE_ORIGINAL_LENGTH = 24',
    ],
  ).module.config
  expected = dataclasses.replace(
    config,
    num_kv_heads=2,
    qk_norm=False,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    mlp_activations=('gelu', 'linear'),
    norm_epsilon=1e-3,
    norm_adds_one=True,
    embedding_scale=3.0,
    logits_via_embedding=True,
    logits_scale=0.5,
    bos_id=7,
    rotary=network.Rotary(50.0, 'llama3', 4.0, 2.0, 5.0, 24),
  )
  assert config == expected
  _, out = logits_of(types.SimpleNamespace(module=network.Decoder(config)))
  groups = functools.partial(attention.selective_attention, selection_groups=2)
  _, same = logits_of(
    types.SimpleNamespace(
      module=network.Decoder(dataclasses.replace(config, attention_fn=groups))
    )
  )
  np.testing.assert_array_equal(out, same)
