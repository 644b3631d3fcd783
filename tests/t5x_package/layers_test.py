"""Layers of T5X's examples by their names: T5X's parameters and values."""

import functools
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from t5x.examples.decoder_only import layers as decoder_only_layers
from t5x.examples.t5 import layers
from tests.support import real_t5x

EXAMPLES = ('t5', 'decoder_only', 'scalable_t5')
ROWS, LENGTH, WIDTH, HEADS, SIZE = 2, 6, 8, 2, 3
INPUTS = np.random.default_rng(0).normal(size=(ROWS, LENGTH, WIDTH))
TOKENS = np.array([[5, 9, 3, 7, 2, 0], [4, 1, 6, 8, 0, 0]])
PREFIX = np.array([[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]])
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]])


def modules(example):
  """Returns (layers module, {name: (module, arguments of a call)})."""
  of = importlib.import_module(f't5x.examples.{example}.layers')
  mask = of.make_decoder_mask(TOKENS, jnp.float32, PREFIX, SEGMENTS)
  x = jnp.asarray(INPUTS, jnp.float32)
  return of, {
    'norm': (of.LayerNorm(), (x,)),
    'dense': (of.DenseGeneral((HEADS, SIZE), kernel_axes=('a', 'b')), (x,)),
    'mlp': (
      of.MlpBlock(12, ('gelu', 'linear'), intermediate_dropout_rate=0.0),
      (x,),
    ),
    'embed': (of.Embed(10, WIDTH, one_hot=True), (TOKENS,)),
    'bias': (of.RelativePositionBiases(8, 5, HEADS, jnp.float32), (9, 7)),
    'attention': (
      of.MultiHeadDotProductAttention(HEADS, SIZE, dropout_rate=0.0),
      (x, x, mask, jnp.arange(36.0).reshape(1, 1, 6, 6) / 36),
    ),
  }


def figures():
  """Returns {example: {layer: [shapes of parameters, sum, sum of squares]}}."""
  result = {}
  for example in EXAMPLES:
    of, layers_of = modules(example)
    result[example] = {}
    for name, (module, args) in layers_of.items():
      if example == 'scalable_t5' and name == 'dense':
        module = of.DenseGeneral((HEADS, SIZE), kernel_axes=('a', 'b', 'c'))
      variables = module.init(jax.random.PRNGKey(0), *args)
      out = module.apply(variables, *args)
      leaves = jax.tree_util.tree_leaves_with_path(variables)
      result[example][name] = [
        {jax.tree_util.keystr(k): str(jnp.shape(x)) for k, x in leaves},
        [float(jnp.sum(out)), float(jnp.sum(jnp.square(out)))],
      ]
    mask = of.make_decoder_mask(TOKENS, jnp.float32, PREFIX, SEGMENTS)
    result[example]['mask'] = np.asarray(mask).astype(int).tolist()
    result[example]['steps'] = np.asarray(steps(of)).tolist()
  return result


def steps(of, prompt=None):
  """Decodes row by row with the KV cache; returns [B, N, M] of steps."""
  module = of.MultiHeadDotProductAttention(HEADS, SIZE, dropout_rate=0.0)
  x = jnp.asarray(INPUTS, jnp.float32)
  bias = jnp.arange(36.0).reshape(1, 1, 6, 6) / 36
  params = {'params': module.init(jax.random.PRNGKey(0), x, x)['params']}
  _, state = module.apply(params, x, x, decode=True, mutable='cache')
  first = 0
  if prompt is not None:
    first = prompt.shape[1]
    padded = jnp.pad(prompt, ((0, 0), (0, LENGTH - first), (0, 0)))
    _, state = module.apply(
      {**params, **state},
      padded,
      padded,
      prefill=True,
      prefill_lengths=jnp.full((ROWS,), first),
      mutable='cache',
    )
  outputs = []
  for i in range(first, LENGTH):
    row = x[:, i : i + 1]
    out, state = module.apply(
      {**params, **state},
      row,
      row,
      bias=bias,
      decode=True,
      mutable='cache',
    )
    outputs.append(out)
  return jnp.concatenate(outputs, axis=1)


def test_masks_show_prefix_segments_and_padding():
  mask = layers.make_decoder_mask(TOKENS, jnp.float32, PREFIX, SEGMENTS)
  for b in range(ROWS):
    for i in range(LENGTH):
      for j in range(LENGTH):
        seen = (
          (j <= i or (PREFIX[b, i] and PREFIX[b, j]))
          and (TOKENS[b, i] and TOKENS[b, j])
          and SEGMENTS[b, i] == SEGMENTS[b, j]
        )
        assert mask[b, 0, i, j] == bool(seen), (b, i, j)
  assert layers.combine_masks(None, None) is None
  assert layers.combine_biases(None) is None
  np.testing.assert_array_equal(
    layers.combine_biases(None, jnp.ones((1, 2)), jnp.ones((1, 2))), [[2, 2]]
  )


@pytest.mark.parametrize('example', EXAMPLES)
def test_steps_give_the_rows_of_the_whole(example):
  of = importlib.import_module(f't5x.examples.{example}.layers')
  module = of.MultiHeadDotProductAttention(HEADS, SIZE, dropout_rate=0.0)
  x = jnp.asarray(INPUTS, jnp.float32)
  bias = jnp.arange(36.0).reshape(1, 1, 6, 6) / 36
  variables = module.init(jax.random.PRNGKey(0), x, x)
  whole = module.apply(
    variables, x, x, of.make_causal_mask(jnp.ones((ROWS, LENGTH))), bias
  )
  np.testing.assert_allclose(steps(of), whole, atol=1e-5)
  np.testing.assert_allclose(steps(of, x[:, :2]), whole[:, 2:], atol=1e-5)
  kernel = variables['params']['query']['kernel']
  split = example == 'scalable_t5'
  assert kernel.shape == ((8, 2, 3) if split else (8, 6))


class Recorder(decoder_only_layers.MultiHeadDotProductAttention):
  """Overrides what enters the cache, by T5X's names: keys count twice."""

  def update_cache_prefill(
    self, key, value, cached_key, cached_value, cache_index, prefill_lengths
  ):
    key, value, index, new_key, new_value, new_index = (
      super().update_cache_prefill(
        key, value, cached_key, cached_value, cache_index, prefill_lengths
      )
    )
    return key, value, index, 2 * new_key, new_value, new_index

  def update_cache_decode(
    self, key, value, cached_key, cached_value, cache_index
  ):
    return super().update_cache_decode(
      2 * key, value, cached_key, cached_value, cache_index
    )


def caches(cls):
  """Returns the cached keys after a prompt of two tokens, and after a step."""
  module = cls(HEADS, SIZE)
  x = jnp.asarray(INPUTS, jnp.float32)
  params = {'params': module.init(jax.random.PRNGKey(0), x, x)['params']}
  apply = functools.partial(module.apply, mutable='cache', deterministic=True)
  _, state = apply(params, x, x, decode=True)
  _, prompt = apply(
    {**params, **state}, x, x, prefill=True, prefill_lengths=jnp.array([2, 2])
  )
  row = x[:, 2:3]
  _, step = apply({**params, **prompt}, row, row, decode=True)
  return [state['cache']['cached_key'] for state in (prompt, step)]


def test_methods_that_enter_tokens_into_the_cache_may_be_overridden():
  ours = caches(Recorder)
  for plain, own in zip(
    caches(decoder_only_layers.MultiHeadDotProductAttention), ours, strict=True
  ):
    assert np.abs(plain).max() > 0
    np.testing.assert_allclose(own, 2 * plain, rtol=1e-6)


def test_attention_is_softmax_of_products_with_dropout_per_key():
  rng = np.random.default_rng(1)
  query, key, value = rng.normal(size=(3, ROWS, LENGTH, HEADS, SIZE))
  out = layers.dot_product_attention(query, key, value, deterministic=True)
  for b in range(ROWS):
    for h in range(HEADS):
      weights = nn.softmax(query[b, :, h] @ key[b, :, h].T)
      np.testing.assert_allclose(
        out[b, :, h], weights @ value[b, :, h], rtol=1e-4
      )
  dropped = layers.dot_product_attention(
    query,
    key,
    jnp.broadcast_to(jnp.eye(LENGTH)[:, None], (ROWS, LENGTH, HEADS, LENGTH)),
    dropout_rng=jax.random.PRNGKey(3),
    dropout_rate=0.5,
  )
  zero = np.asarray(dropped) == 0
  assert 0 < zero.mean() < 1
  np.testing.assert_array_equal(zero, np.broadcast_to(zero[:, :1], zero.shape))


def test_wrong_calls_are_refused():
  module = layers.MultiHeadDotProductAttention(HEADS, SIZE)
  x = jnp.asarray(INPUTS, jnp.float32)
  with pytest.raises(ValueError, match='cannot both be set'):
    module.init(jax.random.PRNGKey(0), x, x, decode=True, prefill=True)
  variables = module.init(jax.random.PRNGKey(0), x, x, decode=True)
  with pytest.raises(ValueError, match='one token for each row'):
    module.apply(variables, x, x, decode=True, mutable='cache')
  with pytest.raises(ValueError, match='expected integers'):
    layers.Embed(4, 4).init(jax.random.PRNGKey(0), jnp.ones((1, 2)))
  with pytest.raises(ValueError, match='bidirectional=False'):
    layers.RelativePositionBiases(8, 5, HEADS, jnp.float32).init(
      jax.random.PRNGKey(0), 3, 3, decode=True
    )


@pytest.mark.slow
def test_parameters_and_values_are_those_of_the_real_t5x():
  real_t5x.skip_without('t5x.models')
  theirs = real_t5x.figures(
    'import json; from tests.t5x_package import layers_test as test\n'
    'print(json.dumps(test.figures()))'
  )
  ours = json.loads(json.dumps(figures()))
  for example in EXAMPLES:
    assert set(ours[example]) == set(theirs[example])
    for name, expected in theirs[example].items():
      if name in ('mask', 'steps'):
        np.testing.assert_allclose(
          ours[example][name], expected, atol=1e-5, err_msg=f'{example} {name}'
        )
        continue
      shapes, sums = ours[example][name]
      assert shapes == expected[0], (example, name)
      np.testing.assert_allclose(sums, expected[1], rtol=1e-5, err_msg=name)
