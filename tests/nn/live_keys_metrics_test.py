"""The metrics of live keys, on both kinds of models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio

from selective_t5x import attention, models, network, pruning
from selective_t5x.errors import UserError
from t5x import optimizers
from tests.nn import memory_loss_test
from tests.support import smoke, whole

LENGTH = 200


def language_model(live_keys_metrics=True, **settings):
  arguments = {
    key: settings.pop(key) for key in ('memory_loss_weight',) if key in settings
  }
  config = network.DecoderConfig(
    **{
      'vocab_size': 32,
      'max_length': LENGTH,
      'emb_dim': 16,
      'num_heads': 2,
      'head_dim': 8,
      'num_layers': 2,
      'mlp_dim': 16,
      'attention_fn': attention.selective_attention,
      **settings,
    }
  )
  return models.LanguageModel(
    network.Decoder(config),
    seqio.ByteVocabulary(),
    optimizers.adamw(learning_rate=0.001),
    live_keys_metrics=live_keys_metrics,
    **arguments,
  )


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  ids = np.repeat([[1, 2], [3, 0]], LENGTH // 2, axis=1)
  targets = rng.integers(1, 32, (2, LENGTH)) * (ids > 0)
  return jax.tree.map(
    jnp.asarray,
    {
      'decoder_input_tokens': np.roll(targets, 1, axis=1),
      'decoder_target_tokens': targets,
      'decoder_segment_ids': ids,
      'decoder_loss_weights': (targets > 0).astype(np.float32),
    },
  )


def measure(model, batch):
  shapes = {'decoder_input_tokens': batch['decoder_input_tokens'].shape}
  params = whole.initial_params(model, shapes)
  loss, metrics = jax.jit(model.loss_fn)(params, batch, None)
  return float(loss), {
    name: float(metric.compute())
    for name, metric in metrics.items()
    if not name.startswith('timing')
  }


def selective(**settings):
  def attend(*args, **more):
    return attention.selective_attention(*args, **settings, **more)

  attend.capabilities = attention.selective_attention.capabilities
  return attend


@pytest.mark.parametrize(
  'settings',
  smoke.first([{}, {'scan_layers': True}, {'memory_loss_weight': 0.1}]),
  ids=str,
)
def test_each_layer_has_its_mean_over_real_tokens(batch, settings):
  all_keys = selective(implementation='blocked', forget_below=0)
  loss, metrics = measure(
    language_model(attention_fn=all_keys, **settings), batch
  )
  plain_loss, plain = measure(language_model(False, **settings), batch)
  names = {f'attention/live_keys_layer_{i}' for i in range(2)}
  assert loss == pytest.approx(plain_loss, rel=1e-6)
  assert set(metrics) - set(plain) == names
  # Three segments of 100 tokens, which see 1 to 100 keys.
  assert [metrics[name] for name in names] == [50.5, 50.5]


def test_dropped_keys_are_not_counted(batch):
  # With so large an eps a key dies wherever its F exceeds the bound's margin.
  attend = selective(
    implementation='blocked', forget_below=0.999, masking_scale=20.0
  )
  _, metrics = measure(language_model(attention_fn=attend), batch)
  assert metrics['attention/live_keys_layer_0'] < 50.5


def test_an_encoder_decoder_has_them_too():
  model = memory_loss_test.model_of(
    attention_fn=selective(implementation='blocked'), live_keys_metrics=True
  )
  tokens = jnp.ones((2, 7), jnp.int32)
  batch = {
    'encoder_input_tokens': tokens,
    'decoder_input_tokens': tokens,
    'decoder_target_tokens': tokens,
    'decoder_loss_weights': jnp.ones((2, 7)),
  }
  shapes = {name: (2, 7) for name in list(batch)[:2]}
  params = whole.initial_params(model, shapes)
  _, metrics = whole.call(model.loss_fn, params, batch, None)
  assert metrics['attention/live_keys_layer_1'].compute() == 4


@pytest.mark.parametrize(
  'settings,message',
  [
    ({'attention_fn': attention.causal_attention}, 'does not count live keys'),
    (
      {'pruning': pruning.Pruning(pruning.Selective(), [8, 8])},
      'expected PRUNING = None',
    ),
    ({'live_keys_metrics': 1}, 'expected True or False'),
  ],
  ids=['attention', 'pruning', 'type'],
)
def test_what_cannot_be_counted_is_one_line(settings, message):
  with pytest.raises(UserError, match=f'live_keys_metrics.* {message}'):
    language_model(**settings)
