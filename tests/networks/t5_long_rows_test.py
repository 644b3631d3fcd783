"""T5's networks hold no array of heads x N x N for long rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention, t5_network
from selective_t5x.nn import t5_layers
from tests.attention.distance_bias_test import largest_array

LENGTH = 2048


def transformer(**settings):
  return t5_network.Transformer(
    t5_network.T5Config(
      vocab_size=16,
      emb_dim=8,
      num_heads=2,
      head_dim=4,
      num_encoder_layers=1,
      num_decoder_layers=1,
      mlp_dim=8,
      dropout_rate=0.0,
      **settings,
    )
  )


@pytest.mark.parametrize('scanned', [False, True])
def test_training_on_long_rows_holds_no_array_of_n_by_n(scanned):
  module = transformer(
    attention_fn=attention.selective_attention, scan_layers=scanned
  )
  tokens = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
  batch = (tokens, tokens, tokens)
  variables = jax.eval_shape(module.init, jax.random.key(0), *batch)

  def loss(params, batch):
    out = module.apply({'params': params}, *batch, enable_dropout=False)
    return jnp.mean(out**2)

  compiled = (
    jax.jit(
      jax.grad(loss), compiler_options={'xla_backend_optimization_level': 0}
    )
    .lower(variables['params'], batch)
    .compile()
  )
  # A tile of a block of 128 queries is the largest.
  assert largest_array(compiled.as_text()) <= 2 * LENGTH * 128


# Functions that declare nothing, so that networks give them arrays.
def selective_with_arrays(*args, **kwargs):
  assert isinstance(kwargs['bias'], jax.Array)
  return attention.selective_attention(*args, **kwargs)


def full_with_arrays(*args, query_ids, key_ids, **kwargs):
  assert isinstance(kwargs['bias'], jax.Array)
  return attention.full_attention(
    *args,
    query_ids=query_ids,
    key_ids=key_ids,
    implementation='reference',
    **kwargs,
  )


@pytest.mark.parametrize('both_ways', [False, True])
def test_biases_by_distance_are_those_of_the_array(both_ways):
  module = t5_layers.RelativeBias(num_heads=3, both_ways=both_ways)
  variables = module.init(jax.random.key(0), 4)
  by_distance = module.apply(variables, method='by_distance')
  np.testing.assert_array_equal(
    by_distance.matrix(300, 300), module.apply(variables, 300)
  )


def test_long_rows_have_the_gradients_of_arrays():
  length = 600
  rng = np.random.default_rng(0)
  tokens = [
    jnp.asarray(np.sort(rng.integers(0, 16, (2, length)))[:, ::-1], jnp.int32)
    for _ in range(3)
  ]
  module = transformer(attention_fn=attention.selective_attention)
  arrays = transformer(
    attention_fn=selective_with_arrays, encoder_attention_fn=full_with_arrays
  )
  params = module.init(jax.random.key(0), *tokens)['params']

  def run(module, params):
    def loss(params):
      out = module.apply({'params': params}, *tokens, enable_dropout=False)
      return jnp.mean(jnp.sin(out)), out

    options = {'xla_backend_optimization_level': 0}
    return jax.jit(jax.grad(loss, has_aux=True), compiler_options=options)(
      params
    )

  got, wanted = run(module, params), run(arrays, params)
  for one, other in zip(
    jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True
  ):
    largest = max(1e-3, float(jnp.max(jnp.abs(other))))
    np.testing.assert_allclose(one, other, atol=2e-5 * largest, rtol=0)
