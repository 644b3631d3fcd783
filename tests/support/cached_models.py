"""Small random models for tests of decoding: T5 and the paper's decoder."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selective_t5x import network, t5_decoder_only, t5_network

VOCAB, LENGTH, BATCH = 24, 10, 3
SIZES = dict(vocab_size=VOCAB, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=24)
_RNG = np.random.default_rng(0)
ENCODER_TOKENS = _RNG.integers(2, VOCAB, (BATCH, 7))
ENCODER_TOKENS[1, 4:] = 0
# Decoder inputs: <BOS>, then any tokens, id 0 among them.
TOKENS = _RNG.integers(0, VOCAB, (BATCH, LENGTH))
TOKENS[:, 0] = 0


@dataclasses.dataclass(eq=False)
class Model:
  """A network with parameters, called as T5X's models call theirs."""

  module: Any
  params: Any
  encoded: tuple[jax.Array, ...]
  method: Callable[..., Any] | None

  def apply(self, tokens, *, targets=None, cache=None, **kwargs):
    """Returns the logits, with the cache where that may change."""
    variables = {'params': self.params}
    mutable = kwargs.pop('mutable', ['cache'])
    if cache is not None:
      variables['cache'] = cache
    targets = jnp.ones_like(tokens) if targets is None else targets
    return self.module.apply(
      variables,
      *self.encoded,
      tokens,
      targets,
      enable_dropout=False,
      mutable=mutable,
      method=self.method,
      **kwargs,
    )


# Compiling takes most of a test's time: each model is built once.
@functools.cache
def build(kind, attention_fn, dtype='float32', attention_extension=None):
  """Returns a Model of one of three kinds, with random parameters."""
  settings = SIZES | dict(
    attention_fn=attention_fn,
    attention_extension=attention_extension,
    dtype=dtype,
  )
  tokens = jnp.asarray(TOKENS)
  ones = jnp.ones_like(tokens)
  if kind == 'decoder':
    module = network.Decoder(
      network.DecoderConfig(max_length=LENGTH, num_layers=2, **settings)
    )
    init = (tokens, ones)
  elif kind == 't5_decoder_only':
    module = t5_decoder_only.DecoderOnly(
      t5_decoder_only.DecoderOnlyConfig(num_layers=2, **settings)
    )
    init = (tokens, ones)
  else:
    module = t5_network.Transformer(
      t5_network.T5Config(
        num_encoder_layers=1,
        num_decoder_layers=2,
        mlp_activations=('gelu', 'linear'),
        **settings,
      )
    )
    init = (jnp.asarray(ENCODER_TOKENS), tokens, ones)
  params = jax.jit(lambda: module.init(jax.random.key(0), *init))()['params']
  # Positions start at zero and biases small: no test would see them.
  keys = iter(jax.random.split(jax.random.key(1), 100))
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: (
      2 * jax.random.normal(next(keys), x.shape, x.dtype)
      if path[-2].key in ('position_embedder', 'relpos_bias')
      else x
    ),
    params,
  )
  if kind != 't5':
    return Model(module, params, (), None)
  encoded = jax.jit(
    lambda params: module.apply(
      {'params': params}, init[0], enable_dropout=False, method='encode'
    )
  )(params)
  return Model(module, params, (encoded, init[0]), module.decode)


@functools.cache
def pruned(model, pruning):
  """Returns a Model with the same parameters that prunes."""
  config = dataclasses.replace(model.module.config, pruning=pruning)
  module = type(model.module)(config)
  method = None if model.method is None else module.decode
  return dataclasses.replace(model, module=module, method=method)
