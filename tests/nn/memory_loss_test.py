"""The memory loss of encoder-decoders; models_test has the language model's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio

from selective_t5x import attention, t5_network
from selective_t5x.attention import memory
from selective_t5x.errors import UserError
from selective_t5x.models import EncoderDecoder
from t5x import models, optimizers
from tests.support import smoke, whole

ENCODER_IDS = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 2, 2]], np.int32)
DECODER_IDS = np.array([[1, 1, 1, 1, 2, 2, 2], [1, 1, 2, 2, 2, 0, 0]], np.int32)


def model_of(cls=EncoderDecoder, **kwargs):
  attention_fn = kwargs.pop('attention_fn', attention.selective_attention)
  config = t5_network.T5Config(
    vocab_size=32,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    num_encoder_layers=1,
    num_decoder_layers=2,
    mlp_dim=24,
    attention_fn=attention_fn,
  )
  return cls(
    t5_network.Transformer(config),
    seqio.ByteVocabulary(),
    seqio.ByteVocabulary(),
    optimizers.adamw(learning_rate=0.001),
    loss_normalizing_factor='NUM_REAL_TARGET_TOKENS',
    z_loss=0.01,
    **kwargs,
  )


@pytest.fixture(scope='module', params=smoke.first(['packed', 'not packed']))
def batch(request):
  rng = np.random.default_rng(0)
  packed = request.param == 'packed'
  inputs = rng.integers(1, 32, ENCODER_IDS.shape) * (ENCODER_IDS > 0)
  targets = rng.integers(1, 32, DECODER_IDS.shape) * (DECODER_IDS > 0)
  ids = DECODER_IDS if packed else np.minimum(DECODER_IDS, 1)
  starts = np.diff(ids, axis=1, prepend=0) != 0
  example = {
    'encoder_input_tokens': inputs,
    'decoder_input_tokens': np.where(starts, 0, np.roll(targets, 1, axis=1)),
    'decoder_target_tokens': targets,
    'decoder_loss_weights': (targets > 0).astype(np.float32),
  }
  if packed:
    example['encoder_segment_ids'] = ENCODER_IDS
    example['decoder_segment_ids'] = DECODER_IDS
  return jax.tree.map(jnp.asarray, example)


@pytest.fixture(scope='module')
def params():
  shapes = {'encoder_input_tokens': (2, 6), 'decoder_input_tokens': (2, 7)}
  params = whole.initial_params(model_of(), shapes)
  # Initial kernels of queries are small: scores of selection would be too.
  return jax.tree.map(lambda x: 2 * x, params)


def measure(model, params, batch):
  loss, metrics = jax.jit(model.loss_fn)(params, batch, None)
  return float(loss), {
    name: float(metric.compute())
    for name, metric in metrics.items()
    if not name.startswith('timing')
  }


def test_it_is_added_to_what_t5xs_model_minimises(batch, params):
  loss, metrics = measure(model_of(memory_loss_weight=0.3), params, batch)
  plain_loss, plain = measure(
    model_of(models.EncoderDecoderModel), params, batch
  )
  assert measure(model_of(), params, batch) == (plain_loss, plain)

  model = model_of(memory_loss_weight=0.3)
  _, sown = whole.call(
    model.module.apply,
    {'params': params},
    batch['encoder_input_tokens'],
    batch['decoder_input_tokens'],
    batch['decoder_target_tokens'],
    batch.get('encoder_segment_ids'),
    batch.get('decoder_segment_ids'),
    enable_dropout=False,
    memory_tau=1.0,
    mutable=['intermediates'],
  )
  # The decoder's layers, and nothing of the encoder.
  assert set(sown['intermediates']) == {'decoder'}
  memories = jnp.stack(
    [
      sown['intermediates']['decoder'][f'layers_{i}']['self_attention'][
        'memory'
      ][0]
      for i in range(2)
    ]
  )
  real = batch['decoder_target_tokens'] > 0
  fraction = memory.fraction_visible(
    memories, batch.get('decoder_segment_ids', real)
  )
  assert 0 < fraction < 0.99
  assert loss - plain_loss == pytest.approx(0.3 * float(fraction), rel=1e-4)
  assert metrics['memory/fraction_visible'] == pytest.approx(float(fraction))
  for layer, visible in enumerate(memories):
    assert metrics[f'memory/visible_tokens_layer_{layer}'] == pytest.approx(
      float(np.mean(visible[real]))
    )
  assert metrics['cross_ent_loss'] == pytest.approx(plain['cross_ent_loss'])
  np.testing.assert_array_equal(
    whole.call(model.score_batch, params, batch),
    whole.call(model_of().score_batch, params, batch),
  )


def test_a_memory_loss_without_selection_is_refused():
  with pytest.raises(
    UserError, match='EncoderDecoder.memory_loss_weight .*does not select'
  ):
    model_of(attention_fn=attention.causal_attention, memory_loss_weight=0.1)


def test_a_row_of_padding_changes_neither_loss_nor_accuracy(batch, params):
  model = model_of(memory_loss_weight=0.3)
  loss, metrics = measure(model, params, batch)
  padded = {k: jnp.pad(v, ((0, 1), (0, 0))) for k, v in batch.items()}
  with_row, others = measure(model, params, padded)
  assert with_row == pytest.approx(loss, rel=1e-6)
  for name in (
    'cross_entropy_per_token',
    'accuracy',
    'memory/fraction_visible',
  ):
    assert others[name] == pytest.approx(metrics[name], rel=1e-6)
