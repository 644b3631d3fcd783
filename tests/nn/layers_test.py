import jax
import jax.numpy as jnp
import numpy as np

from selective_t5x.nn import layers


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
