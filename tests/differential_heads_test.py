"""What differential attention learns, and what follows it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention, layers
from selective_t5x.differential_heads import DifferentialHeads
from selective_t5x.errors import UserError

X = np.random.default_rng(0).normal(size=(1, 6, 8)).astype(np.float32)
SEGMENTS = jnp.array([[1, 1, 1, 2, 2, 0]])


def layer(**settings):
  return layers.SelfAttention(
    2,
    4,
    attention.differential_attention,
    extension=DifferentialHeads,
    **settings,
  )


def test_a_layer_is_the_difference_normalised_and_scaled():
  module = layer(layer=1, normalise=False)
  variables = module.init(jax.random.key(0), X, SEGMENTS, deterministic=True)
  params = variables['params']
  learned = params['extension']
  assert {name: x.shape for name, x in learned.items() if name != 'norm'} == {
    f'share_{name}': (2,) for name in ('query_1', 'key_1', 'query_2', 'key_2')
  }
  rng = np.random.default_rng(1)
  params['extension'] = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), learned
  )
  learned = params['extension']
  initial = 0.8 - 0.6 * math.exp(-0.3)
  share = initial + sum(
    sign * np.exp(learned[f'share_query_{i}'] @ learned[f'share_key_{i}'])
    for i, sign in ((1, 1), (2, -1))
  )
  query, key, value = (
    (X @ params[name]['kernel']).reshape(1, 6, 2, 4)
    for name in ('query', 'key', 'value')
  )
  out = attention.differential_attention(
    query,
    key,
    value,
    share=share,
    segment_ids=SEGMENTS,
    implementation='reference',
  )
  out /= np.sqrt(np.mean(np.square(out), axis=-1, keepdims=True) + 1e-5)
  out *= (1 - initial) * learned['norm']['scale']
  np.testing.assert_allclose(
    module.apply({'params': params}, X, SEGMENTS, deterministic=True),
    out.reshape(1, 6, 8) @ params['out']['kernel'],
    rtol=1e-4,
    atol=1e-5,
  )


def test_an_odd_head_size_is_refused_by_its_gin_name():
  module = layers.SelfAttention(
    2, 3, attention.differential_attention, extension=DifferentialHeads
  )
  with pytest.raises(UserError, match='HEAD_DIM = 3: .* an even number'):
    jax.eval_shape(
      lambda: module.init(jax.random.key(0), X, SEGMENTS, deterministic=True)
    )
