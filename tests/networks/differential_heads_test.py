"""What differential attention learns, and what follows it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention
from selective_t5x.differential_heads import DifferentialHeads
from selective_t5x.errors import UserError
from selective_t5x.nn.self_attention import SelfAttention

X = np.random.default_rng(0).normal(size=(1, 6, 8)).astype(np.float32)
SEGMENTS = jnp.array([[1, 1, 1, 2, 2, 0]])


def initial(**settings):
  module = SelfAttention(
    2,
    settings.pop('head_dim', 4),
    attention.differential_attention,
    extension=DifferentialHeads,
    **settings,
  )
  return jax.eval_shape(
    lambda: module.init(jax.random.key(0), X, SEGMENTS, deterministic=True)
  )


def test_it_adds_four_vectors_and_a_norm():
  variables = initial()
  learned = dict(variables['params']['extension'])
  assert learned.pop('norm')['scale'].shape == (4,)
  assert {name: x.shape for name, x in learned.items()} == {
    f'share_{name}': (2,) for name in ('query_1', 'key_1', 'query_2', 'key_2')
  }
  axes = variables['params_axes']['extension']
  assert axes['share_key_1_axes'].names == ('kv',)


def test_an_odd_head_size_is_refused_by_its_gin_name():
  with pytest.raises(UserError, match='HEAD_DIM = 3: .* an even number'):
    initial(head_dim=3)
