"""What differential attention learns, and what follows it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention, gin_functions, pruning
from selective_t5x.differential_heads import (
  DifferentialHeads,
  DifferentialV2Heads,
)
from selective_t5x.errors import UserError
from selective_t5x.nn.call import Call
from selective_t5x.nn.self_attention import SelfAttention
from tests.nn import extensions_test
from tests.support import cached_models, smoke

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
    lambda: module.init(jax.random.key(0), X, Call(SEGMENTS))
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


@pytest.mark.parametrize('number', [3, 1, None, 2.0])
def test_heads_that_cannot_be_halved_are_refused(number):
  with pytest.raises(UserError, match='NUM_HEADS = .* an even number'):
    gin_functions.half(number)
  assert gin_functions.half(6) == 3


@pytest.mark.parametrize('split', smoke.first([False, True]))
def test_the_second_version_doubles_the_queries(split):
  module = SelfAttention(
    2,
    4,
    attention.differential_v2_attention,
    extension=DifferentialV2Heads,
    split_kernels=split,
  )
  params = jax.eval_shape(
    lambda: module.init(jax.random.key(0), X, Call(SEGMENTS))
  )['params']
  shapes = jax.tree.map(lambda x: x.shape, params)
  joined = {name: (8, size) for name, size in (('query', 16), ('key', 8))}
  if split:
    joined = {'query': (8, 4, 4), 'key': (8, 2, 4)}
  for name, shape in joined.items():
    assert shapes[name]['kernel'] == shape
  assert shapes['extension'] == {'share': {'kernel': (8, 2)}}
  assert shapes['query_norm'] == {'scale': (4,)}


@pytest.mark.parametrize('policy', [pruning.Window(), pruning.H2O()])
def test_the_second_version_can_be_pruned(policy):
  model = cached_models.pruned(
    cached_models.build(
      'decoder',
      attention.differential_v2_attention,
      attention_extension=DifferentialV2Heads,
    ),
    pruning.Pruning(policy, 4),
  )
  outs, _ = extensions_test.decode(model)
  whole = extensions_test.run(model)
  np.testing.assert_allclose(outs, whole[:, 4:], atol=1e-5)
