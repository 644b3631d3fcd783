"""Random T5s of the suite's own network, for exports."""

import jax
import jax.numpy as jnp
import seqio
from flax import traverse_util

from selective_t5x import t5_network


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
  params = traverse_util.flatten_dict(variables['params'], sep='/')
  # Norms begin as ones and biases small: no test would see them.
  keys = jax.random.split(rng, len(params))
  params = {
    name: x + 0.2 * jax.random.normal(key, x.shape)
    for key, (name, x) in zip(keys, sorted(params.items()), strict=True)
  }
  vocabulary = seqio.PassThroughVocabulary(architecture.vocab_size, eos_id=1)
  return models.EncoderDecoderModel(
    module, vocabulary, vocabulary, None
  ), params
