import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention, layers

SEGMENTS = jnp.array([[1, 1, 1, 2, 2, 0]])


def x_like(*shape):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def init(module, *args, **kwargs):
  variables = module.init(jax.random.key(0), *args, **kwargs)
  return variables['params'], variables['params_axes']


def test_rms_norm_divides_by_the_root_mean_square_and_scales():
  x = 7 * x_like(2, 3, 8)
  norm = layers.RMSNorm()
  params, _ = init(norm, x)
  np.testing.assert_array_equal(params['scale'], np.ones(8))
  params = {'scale': jnp.arange(8.0)}
  rms = np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True))
  np.testing.assert_allclose(
    norm.apply({'params': params}, x), x / rms * np.arange(8), rtol=1e-5
  )


def test_rms_norm_takes_its_statistics_in_float32():
  x = jnp.full((1, 1, 4), 1000.0, jnp.float16)  # Its square overflows.
  norm = layers.RMSNorm(dtype=jnp.float16)
  params, _ = init(norm, x)
  out = norm.apply({'params': params}, x)
  assert out.dtype == jnp.float16
  np.testing.assert_allclose(out, 1.0, rtol=1e-3)


def test_swiglu_is_its_formula():
  x = x_like(2, 3, 8)
  block = layers.FeedForward(mlp_dim=12)
  params, axes = init(block, x, deterministic=True)
  gate = x @ params['wi_0']['kernel']
  hidden = gate / (1 + jnp.exp(-gate)) * (x @ params['wi_1']['kernel'])
  np.testing.assert_allclose(
    block.apply({'params': params}, x, deterministic=True),
    hidden @ params['wo']['kernel'],
    rtol=1e-5,
    atol=1e-6,
  )
  assert axes['wi_0']['kernel_axes'].names == ('embed', 'mlp')
  assert axes['wo']['kernel_axes'].names == ('mlp', 'embed')


def test_embed_looks_rows_up_and_shows_an_id_beyond_the_table():
  embed = layers.Embed(num_embeddings=5, features=3)
  ids = jnp.array([[4, 0, 5]])
  params, _ = init(embed, ids)
  out = embed.apply({'params': params}, ids)
  np.testing.assert_array_equal(out[0, 0], params['embedding'][4])
  np.testing.assert_array_equal(out[0, 1], params['embedding'][0])
  assert np.all(np.isnan(out[0, 2]))


def attend(attention_fn, x, segment_ids=SEGMENTS, **kwargs):
  module = layers.SelfAttention(
    num_heads=2, head_dim=4, attention_fn=attention_fn
  )
  params, _ = init(module, x, segment_ids, deterministic=True)
  return module.apply(
    {'params': params}, x, segment_ids, deterministic=True, **kwargs
  )


def test_queries_and_keys_reach_the_function_normalised_values_not():
  seen = {}

  def spy(query, key, value, *, segment_ids):
    seen.update(query=query, key=key, value=value, segment_ids=segment_ids)
    return value

  attend(spy, 5 * x_like(1, 6, 8))
  for name in ('query', 'key'):
    assert seen[name].shape == (1, 6, 2, 4)
    np.testing.assert_allclose(
      np.mean(np.square(seen[name]), axis=-1), 1, rtol=1e-4
    )
  assert np.std(seen['value']) > 2
  np.testing.assert_array_equal(seen['segment_ids'], SEGMENTS)


def test_memory_is_sown_only_when_asked():
  x = x_like(1, 6, 8)
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
  out = attend(attention_fn, x_like(1, 6, 8))
  np.testing.assert_array_equal(out[0, 5], 0)
  assert np.all(np.any(out[0, :5] != 0, axis=-1))


def test_attention_dropout_is_one_mask_per_key_for_all_queries():
  # T5X multiplies the attention weights by a mask shared by all queries. Here
  # the values carry it: whole value vectors are zero or scaled by 1 / keep.
  seen = []

  def spy(query, key, value, *, segment_ids):
    seen.append(value)
    return value

  module = layers.SelfAttention(2, 4, spy, dropout_rate=0.5)
  x, ids = x_like(3, 40, 8), jnp.ones((3, 40), int)
  params, _ = init(module, x, ids, deterministic=True)
  for deterministic in (True, False):
    module.apply(
      {'params': params},
      x,
      ids,
      deterministic=deterministic,
      rngs={'dropout': jax.random.key(1)},
    )
  plain, dropped = seen[-2:]
  keep = np.any(dropped != 0, axis=-1)
  assert 0.3 < keep.mean() < 0.7
  np.testing.assert_allclose(
    dropped, np.where(keep[..., None], 2 * plain, 0), rtol=1e-6
  )
