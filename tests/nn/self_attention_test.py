import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention
from selective_t5x.nn.call import Call
from selective_t5x.nn.self_attention import SelfAttention
from tests.nn import layers_test

SEGMENTS = jnp.array([[1, 1, 1, 2, 2, 0]])


def attend(attention_fn, x, memory_tau=None, **kwargs):
  module = SelfAttention(num_heads=2, head_dim=4, attention_fn=attention_fn)
  params, _ = layers_test.init(module, x, Call(SEGMENTS))
  call = Call(SEGMENTS, memory_tau=memory_tau)
  return module.apply({'params': params}, x, call, **kwargs)


def test_queries_and_keys_reach_the_function_normalised_values_not():
  seen = {}

  def spy(query, key, value, *, segment_ids):
    seen.update(query=query, key=key, value=value, segment_ids=segment_ids)
    return value

  attend(spy, 5 * layers_test.x_like(1, 6, 8))
  for name in ('query', 'key'):
    assert seen[name].shape == (1, 6, 2, 4)
    np.testing.assert_allclose(
      np.mean(np.square(seen[name]), axis=-1), 1, rtol=1e-4
    )
  assert np.std(seen['value']) > 2
  np.testing.assert_array_equal(seen['segment_ids'], SEGMENTS)


def test_memory_is_sown_only_when_asked():
  x = layers_test.x_like(1, 6, 8)
  fn = attention.selective_attention
  _, sown = attend(fn, x, mutable=['intermediates'])
  assert not sown.get('intermediates')
  out, sown = attend(fn, x, mutable=['intermediates'], memory_tau=1.0)
  (memory,) = sown['intermediates']['memory']
  assert memory.shape == (1, 6) and memory.dtype == jnp.float32
  np.testing.assert_array_equal(out, attend(fn, x))


@pytest.mark.parametrize(
  'attention_fn', [attention.causal_attention, attention.selective_attention]
)
def test_padding_rows_come_out_as_zero(attention_fn):
  out = attend(attention_fn, layers_test.x_like(1, 6, 8))
  np.testing.assert_array_equal(out[0, 5], 0)
  assert np.all(np.any(out[0, :5] != 0, axis=-1))


def test_attention_dropout_is_one_mask_per_key_for_all_queries():
  # T5X multiplies the attention weights by a mask shared by all queries. Here
  # the values carry it: whole value vectors are zero or scaled by 1 / keep.
  seen = []

  def spy(query, key, value, *, segment_ids):
    seen.append(value)
    return value

  module = SelfAttention(2, 4, spy, dropout_rate=0.5)
  x, ids = layers_test.x_like(3, 40, 8), jnp.ones((3, 40), int)
  params, _ = layers_test.init(module, x, Call(ids))
  for deterministic in (True, False):
    module.apply(
      {'params': params},
      x,
      Call(ids, deterministic),
      rngs={'dropout': jax.random.key(1)},
    )
  plain, dropped = seen[-2:]
  keep = np.any(dropped != 0, axis=-1)
  assert 0.3 < keep.mean() < 0.7
  np.testing.assert_allclose(
    dropped, np.where(keep[..., None], 2 * plain, 0), rtol=1e-6
  )
