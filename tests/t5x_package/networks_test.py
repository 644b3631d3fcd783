"""Networks by T5X's names: T5X's parameters, another attention by request."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention, t5_network
from selective_t5x.errors import UserError
from t5x import base_models
from tests.support import real_t5x

SIZES = {
  **{'vocab_size': 32, 'emb_dim': 8, 'num_heads': 2, 'head_dim': 4},
  **{'mlp_dim': 12, 'mlp_activations': ('gelu', 'linear')},
  **{'num_encoder_layers': 1, 'num_decoder_layers': 2, 'dropout_rate': 0.0},
}
FIELDS = {
  'examples.t5': {},
  'examples.scalable_t5': {'scan_layers': True},
  'contrib.gpu.t5': {'scale_attn_logits': True},
}
INPUTS = np.array([[5, 9, 3, 7, 2, 8, 4, 0]])
TARGETS = np.array([[6, 6, 9, 2, 7, 1]])
BATCH = (INPUTS, np.pad(TARGETS[:, :-1], ((0, 0), (1, 0))), TARGETS)


def t5xs(name):
  """Returns the network of T5X's package, on the engine that runs."""
  import importlib

  network = importlib.import_module(f't5x.{name}.network')
  return network.Transformer(network.T5Config(**SIZES, **FIELDS[name]))


def causal(query, key, value, **kwargs):
  """Plain attention that is not known as such, so that the network is ours."""
  return attention.causal_attention(query, key, value, **kwargs)


def logits(module, params):
  apply = jax.jit(functools.partial(module.apply, enable_dropout=False))
  return apply({'params': params}, *BATCH)


def params_of(module):
  init = jax.jit(functools.partial(module.init, enable_dropout=False))
  return init(jax.random.key(0), *BATCH)['params']


def gaps(names=tuple(FIELDS)):
  """Returns how far our networks are from those of T5X's package."""
  figures = {}
  for name in names:
    theirs = t5xs(name)
    params = params_of(theirs)
    ours = t5_network.from_t5x(theirs, causal)
    assert type(ours) is t5_network.Transformer
    shapes = jax.tree.map(jnp.shape, params)
    assert jax.tree.map(jnp.shape, params_of(ours)) == shapes
    gap = logits(theirs, params) - logits(ours, params)
    figures[name] = float(jnp.max(jnp.abs(gap)))
    selective = t5_network.from_t5x(theirs, attention.selective_attention)
    change = logits(theirs, params) - logits(selective, params)
    figures[f'{name} selective'] = float(jnp.max(jnp.abs(change)))
  return figures


def check(figures, names=tuple(FIELDS)):
  for name in names:
    assert figures[name] < 1e-5, figures
    assert figures[f'{name} selective'] > 1e-4, figures


def test_sizes_and_parameters_stay_and_attention_changes():
  check(gaps(['examples.t5']), ['examples.t5'])


def test_decode_may_be_overridden_as_t5x_has_it():
  from t5x.examples.t5 import network

  class Doubled(network.Transformer):
    def decode(
      self,
      encoded,
      encoder_input_tokens,
      decoder_input_tokens,
      decoder_target_tokens,
      encoder_segment_ids=None,
      decoder_segment_ids=None,
      decoder_positions=None,
      enable_dropout=True,
      decode=False,
      max_decode_length=None,
    ):
      return 2.0 * super().decode(
        encoded,
        encoder_input_tokens,
        decoder_input_tokens,
        decoder_target_tokens,
        encoder_segment_ids=encoder_segment_ids,
        decoder_segment_ids=decoder_segment_ids,
        decoder_positions=decoder_positions,
        enable_dropout=enable_dropout,
        decode=decode,
        max_decode_length=max_decode_length,
      )

  plain = t5xs('examples.t5')
  params = params_of(plain)
  doubled = logits(Doubled(plain.config), params)
  np.testing.assert_allclose(doubled, 2.0 * logits(plain, params), rtol=1e-6)


@pytest.mark.parametrize('name', FIELDS)
def test_prompts_are_read_step_by_step_as_on_t5x(name):
  assert not base_models.takes_argument(t5xs(name).decode, 'prefill')


@pytest.mark.slow
def test_on_the_real_t5x():
  real_t5x.skip_without('t5x.models')
  code = 'import json; from tests.t5x_package import networks_test as test\n'
  check(real_t5x.figures(code + 'print(json.dumps(test.gaps()))'))


def test_plain_attention_leaves_the_network_as_it_is():
  module = t5xs('examples.t5')
  assert t5_network.from_t5x(module, attention.causal_attention) is module


def test_what_does_not_fit_is_refused():
  from t5x.examples.scalable_t5 import network

  config = network.T5Config(**SIZES)
  assert (
    config.scan_layers and not config.replace(scan_layers=False).scan_layers
  )
  with pytest.raises(UserError, match='param_scan_axis = 2: expected 1'):
    config.replace(param_scan_axis=2)

  class Other(network.Transformer):
    """A network whose attention nobody knows here."""

  with pytest.raises(UserError, match='cannot be replaced from outside'):
    t5_network.from_t5x(Other(config), attention.selective_attention)


def test_the_decoder_of_t5xs_example():
  from selective_t5x import t5_decoder_only
  from t5x.examples.decoder_only import network

  sizes = {k: v for k, v in SIZES.items() if 'coder_layers' not in k}
  module = network.DecoderWrapper(
    network.TransformerConfig(num_layers=2, **sizes)
  )
  ours = t5_decoder_only.from_t5x(module, attention.selective_attention)
  assert ours.config.num_layers == 2
  assert ours.config.attention_fn is attention.selective_attention
