"""T5's decoder alone; t5x_networks_test compares it with the real T5X's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention, t5_decoder_only
from selective_t5x.errors import UserError
from tests.support import t5_reference

CONFIG = t5_decoder_only.DecoderOnlyConfig(
  vocab_size=32,
  emb_dim=16,
  num_heads=2,
  head_dim=4,
  num_layers=2,
  mlp_dim=24,
  mlp_activations=('gelu', 'linear'),
  dropout_rate=0.0,
)
TARGETS = np.array([[5, 9, 3, 7, 7, 2, 8, 1], [30, 2, 8, 1, 0, 0, 0, 0]])
INPUTS = np.pad(TARGETS[:, :-1], ((0, 0), (1, 0))) * (TARGETS > 0)


def decoder(**settings):
  return t5_decoder_only.DecoderOnly(dataclasses.replace(CONFIG, **settings))


def init(module):
  variables = jax.jit(
    lambda rng: module.init(rng, INPUTS, TARGETS, enable_dropout=False)
  )(jax.random.key(0))
  # Larger than at the start, or no test would see them.
  variables['params']['decoder']['relpos_bias']['rel_embedding'] *= 5
  return variables


def logits(module, params, *batch):
  return jax.jit(
    lambda params, *batch: module.apply(
      {'params': params}, *batch, enable_dropout=False
    )
  )(params, *batch)


@pytest.mark.parametrize(
  'head, version',
  [(None, {}), (0, dict(mlp_activations=('relu',), logits_via_embedding=True))],
)
def test_logits_are_those_of_the_decoder_written_out(head, version):
  module = decoder(
    attention_fn=attention.causal_attention
    if head is None
    else attention.selective_attention,
    **version,
  )
  params = init(module)['params']
  out = logits(module, params, INPUTS, TARGETS)
  assert out.dtype == jnp.float32
  for row, inputs, targets in zip(out, INPUTS, TARGETS, strict=True):
    count = np.sum(targets > 0)
    wanted = t5_reference.decoder_only(params, inputs[:count], 2, head)
    np.testing.assert_allclose(row[:count], wanted, atol=2e-5)


def test_all_parameters_are_under_decoder_and_none_is_cross_attention():
  params = init(decoder(num_layers=1))['params']
  assert set(params) == {'decoder'}
  assert set(params['decoder']) == {
    'token_embedder',
    'relpos_bias',
    'layers_0',
    'decoder_norm',
    'logits_dense',
  }
  assert set(params['decoder']['layers_0']) == {
    'pre_self_attention_layer_norm',
    'self_attention',
    'pre_mlp_layer_norm',
    'mlp',
  }


@pytest.mark.parametrize(
  'attention_fn', [attention.causal_attention, attention.selective_attention]
)
def test_a_packed_row_gives_each_segments_own_logits(attention_fn):
  module = decoder(attention_fn=attention_fn)
  params = init(module)['params']
  alone = logits(module, params, INPUTS, TARGETS)
  packed = logits(
    module,
    params,
    np.concatenate([INPUTS[0], INPUTS[1]])[None],
    np.concatenate([TARGETS[0], TARGETS[1]])[None],
    np.array([[1] * 8 + [2] * 4 + [0] * 4]),
  )[0]
  np.testing.assert_allclose(packed[:8], alone[0], atol=2e-5)
  np.testing.assert_allclose(packed[8:12], alone[1, :4], atol=2e-5)


def test_a_prefix_sees_itself_whole_and_selection_refuses_one():
  module = decoder()
  params = init(module)['params']
  prefix = np.array([[1, 1, 1, 0, 0, 0, 0, 0]] * 2)
  rest = (TARGETS, None, None, prefix)
  before = logits(module, params, INPUTS, *rest)
  changed = INPUTS.copy()
  changed[0, 2] = 11
  after = logits(module, params, changed, *rest)
  assert np.all(np.any(before[0] != after[0], axis=-1))
  with pytest.raises(UserError, match='takes no prefix'):
    logits(
      decoder(attention_fn=attention.selective_attention), params, INPUTS, *rest
    )


def test_a_bad_setting_is_named():
  with pytest.raises(
    UserError, match='t5_decoder_only.DecoderOnlyConfig.num_layers = 0'
  ):
    decoder(num_layers=0)
