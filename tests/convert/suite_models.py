"""Random models of the suite's own networks, for exports."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import seqio
from flax import traverse_util

from selective_t5x import attention, network, pruning, t5_network
from selective_t5x.convert import orbax_files


def nested(params):
  return traverse_util.unflatten_dict(params, sep='/')


def random_model(architecture, rng, **settings):
  """Returns T5X's model and {name: array} of its parameters."""
  from t5x import models

  module = t5_network.Transformer(
    t5_network.T5Config(
      vocab_size=architecture.vocab_size,
      emb_dim=architecture.emb_dim,
      num_heads=architecture.num_heads,
      head_dim=architecture.head_dim,
      mlp_dim=architecture.mlp_dim,
      num_encoder_layers=architecture.num_encoder_layers,
      num_decoder_layers=architecture.num_decoder_layers,
      mlp_activations=architecture.mlp_activations,
      logits_via_embedding=architecture.logits_via_embedding,
      **settings,
    )
  )
  tokens = jnp.ones((1, 4), int)
  variables = jax.jit(
    lambda: module.init(rng, tokens, tokens, tokens, enable_dropout=False)
  )()
  params = randomised(variables['params'], rng)
  vocabulary = seqio.PassThroughVocabulary(architecture.vocab_size, eos_id=1)
  return models.EncoderDecoderModel(
    module, vocabulary, vocabulary, None
  ), params


def randomised(params, rng):
  """Returns {name: array}; norms begin as ones, so no test would see them."""
  params = traverse_util.flatten_dict(params, sep='/')
  keys = jax.random.split(rng, len(params))
  return {
    name: x + 0.2 * jax.random.normal(key, x.shape)
    for key, (name, x) in zip(keys, sorted(params.items()), strict=True)
  }


# Settings of selection and their budgets, by the name of a test.
ATTENTIONS = {
  'plain': None,
  'selective': {},
  'another head': {'selection_head': 1},
  'mean': {'selection_head': 'mean'},
  'per head': {'selection_head': 'per_head'},
  'groups': {'selection_groups': 2, 'selection_head': 1},
  'no constraints': {
    'relu': False,
    'protect_bos': False,
    'protect_self': False,
  },
}


def attention_fn(selection):
  if selection is None:
    return attention.causal_attention
  return functools.partial(attention.selective_attention, **selection)


def pruned(budgets):
  if budgets is None:
    return None
  return pruning.Pruning(pruning.Selective(), budgets)


def random_decoder(settings, selection, budgets, rng):
  """Returns T5X's model of a decoder, and {name: array} of its parameters."""
  from selective_t5x import models

  module = network.Decoder(
    network.DecoderConfig(
      **settings,
      attention_fn=attention_fn(selection),
      pruning=pruned(budgets),
    )
  )
  tokens = jnp.ones((1, 4), int)
  variables = jax.jit(
    lambda: module.init(rng, tokens, tokens, enable_dropout=False)
  )()
  vocabulary = seqio.PassThroughVocabulary(settings['vocab_size'], eos_id=1)
  model = models.LanguageModel(module, vocabulary, None)
  return model, randomised(variables['params'], rng)


def write_run(folder, config, params, settings, selection, budgets):
  """Writes a checkpoint and the config.gin that a run would have.

  Args:
    folder: an existing folder.
    config: 'network.DecoderConfig' or 't5_network.T5Config'.
    params: {name: array}.
    settings: fields of the config.
    selection: arguments of selective_attention; None: plain attention.
    budgets: of the caches; None: none.
  """
  lines = ['from __gin__ import dynamic_registration']
  lines += [
    f'from selective_t5x import {name}'
    for name in ('attention', 'network', 'pruning', 't5_network')
  ]
  for key, value in settings.items():
    if isinstance(value, network.Rotary):
      lines.append(f'network.Rotary.theta = {value.theta}')
      value = '@network.Rotary()'
    else:
      value = repr(value)
    lines.append(f'{config}.{key} = {value}')
  if selection is not None:
    lines.append(f'{config}.attention_fn = @attention.selective_attention')
    lines += [
      f'attention.selective_attention.{key} = {value!r}'
      for key, value in selection.items()
    ]
  if budgets is not None:
    lines.append(f'{config}.pruning = @pruning.Pruning()')
    lines.append('pruning.Pruning.policy = @pruning.Selective()')
    lines.append(f'pruning.Pruning.budgets = {budgets!r}')
  (folder / 'config.gin').write_text('\n'.join(lines))
  orbax_files.write(
    folder / 'checkpoint_3',
    3,
    {
      name: orbax_files.LazyArray(x.shape, x.dtype, lambda x=x: np.asarray(x))
      for name, x in params.items()
    },
  )
