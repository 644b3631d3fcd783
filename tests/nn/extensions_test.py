"""An extension is called, cached and finished as its contract says."""

import functools

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from selective_t5x import attention, network, pruning
from selective_t5x.attention import capabilities
from selective_t5x.errors import UserError
from selective_t5x.nn import layers
from selective_t5x.nn.call import Call
from selective_t5x.nn.extensions import Extended, Extension
from selective_t5x.nn.self_attention import SelfAttention
from tests.support import cached_models
from tests.support.cached_models import BATCH, LENGTH, TOKENS

compiled = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


class Slopes(Extension):
  """Lowers logits by a learned multiple of the distance in the segment."""

  factor: float = 1.0

  def setup(self):
    self.slope = layers.Dense(1, ('embed', 'heads'), self.dtype)

  def __call__(self, x, projected, heads, position, *, deterministic):
    del projected, deterministic
    slope = self.factor * nn.sigmoid(self.slope(x)[..., 0])
    at = jnp.broadcast_to(position, x.shape[:2]).astype(self.dtype)
    return Extended(heads, kept={'at': at}, given={'own': at, 'slope': slope})

  def finish(self, x, out):
    return out * (1 + self.slope(x)[..., None])


def sloping(query, key, value, *, own, at, slope, bias=None, **settings):
  """Causal attention whose keys carry where they are."""
  added = slope[:, None, :, None] * (at[:, None] - own[..., None])[:, None]
  bias = added if bias is None else bias + added
  settings.pop('at', None)
  return attention.causal_attention(query, key, value, bias=bias, **settings)


def build(attention_fn=sloping):
  return cached_models.build(
    'decoder', attention_fn, attention_extension=Slopes
  )


def run(model, **kwargs):
  return compiled(
    lambda: model.apply(jnp.asarray(TOKENS), mutable=False, **kwargs)
  )()


def decode(model):
  """Feeds the tokens after a prompt of 4, of whose rows nonsense follows."""
  prompt = jnp.asarray(np.where(np.arange(LENGTH) < 4, TOKENS, 3))
  lengths = jnp.full(BATCH, 4)

  @compiled
  def fill():
    _, empty = model.apply(prompt, decode=True)
    _, filled = model.apply(
      prompt, cache=empty['cache'], prefill=True, prefill_lengths=lengths
    )
    return filled['cache']

  @compiled
  def step(cache, tokens):
    logits, changed = model.apply(tokens[:, None], cache=cache, decode=True)
    return logits[:, 0], changed['cache']

  outs, cache = [], fill()
  for tokens in TOKENS.T[4:]:
    logits, cache = step(cache, jnp.asarray(tokens))
    outs.append(logits)
  return np.stack(outs, axis=1), cache


def test_steps_are_the_parallel_form_and_what_is_kept_is_cached():
  model = build()
  outs, cache = decode(model)
  np.testing.assert_allclose(outs, run(model)[:, 4:], atol=1e-5)
  # Positions count from 1.
  (kept, *_) = (
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(cache)
    if path[-1].key == 'cached_at'
  )
  np.testing.assert_array_equal(kept, np.tile(1 + np.arange(LENGTH), (3, 1)))


def test_a_pruned_cache_drops_what_is_kept_with_its_key():
  prune = pruning.Pruning(pruning.Window(), 4)
  model = cached_models.pruned(build(), prune)
  outs, cache = decode(model)
  np.testing.assert_allclose(outs, run(model)[:, 4:], atol=1e-5)
  shapes = {
    path[-1].key: leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(cache)
  }
  assert shapes['cached_at'] == (BATCH, 4)


def attend(extension, attention_fn, x, segments):
  """Returns one layer's output and its parameters."""
  layer = SelfAttention(2, 8, attention_fn, extension=extension)

  @compiled
  def run():
    variables = layer.init(jax.random.key(0), x, Call(segments))
    out = layer.apply(variables, x, Call(segments))
    return out, variables['params']

  return run()


X = np.random.default_rng(0).normal(size=(1, 6, 16)).astype(np.float32)
SEGMENTS = np.array([[1, 1, 2, 2, 2, 2]])


def test_packed_segments_count_their_own_positions_and_parts_are_named():
  out, params = attend(Slopes, sloping, X, SEGMENTS)
  assert params['extension']['slope']['kernel'].shape == (16, 1)
  alone, _ = attend(Slopes, sloping, X[:, 2:], SEGMENTS[:, 2:])
  np.testing.assert_allclose(out[:, 2:], alone, atol=1e-5)


def test_without_one_nothing_changes():
  extended = attend(Extension, attention.causal_attention, X, SEGMENTS)
  plain = attend(None, attention.causal_attention, X, SEGMENTS)
  jax.tree.map(np.testing.assert_array_equal, extended, plain)


def test_gin_binds_a_class_and_its_attributes():
  gin.clear_config()
  try:
    gin.parse_config("""
      from __gin__ import dynamic_registration
      from selective_t5x import attention
      from selective_t5x import network
      from tests.nn import extensions_test
      network.DecoderConfig:
        vocab_size = 8
        max_length = 8
        attention_fn = @attention.causal_attention
        attention_extension = @extensions_test.Slopes
      extensions_test.Slopes.factor = 0.5
    """)
    config = gin.get_configurable('network.DecoderConfig')()
    made = config.attention_extension(num_heads=2, head_dim=4, name='extension')
    assert (made.factor, made.num_heads, made.layer) == (0.5, 2, 0)
  finally:
    gin.clear_config()


def test_what_does_not_fit_is_named():
  with pytest.raises(UserError, match='Slopes gives at, .*causal_attention'):
    build(attention.causal_attention)
  with pytest.raises(UserError, match='attention_extension = .*subclass'):
    network.DecoderConfig(8, 8, attention_extension=attention.causal_attention)
  with pytest.raises(UserError, match='needs every key in its place'):
    network.DecoderConfig(
      8,
      8,
      attention_fn=functools.partial(
        capabilities.declare(needs_every_key=True)(lambda: None)
      ),
      pruning=pruning.Pruning(pruning.Window(), 4),
    )
