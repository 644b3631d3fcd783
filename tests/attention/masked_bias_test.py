"""A mask in the bias, as flaxformer's, stands for segments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention
from selective_t5x.errors import UserError

B, N, H, D = 2, 9, 2, 4
IDS = np.array([[1] * 4 + [2] * 3 + [0] * 2, [1] * 9])


def inputs(size=D):
  keys = jax.random.split(jax.random.key(0), 4)
  query, key, value = (jax.random.normal(k, (B, N, H, size)) for k in keys[:3])
  return query, key, value, jax.random.normal(keys[3], (1, H, N, N))


def mask_of(ids):
  """The mask that T5X and flaxformer make of packed rows."""
  same = (ids[:, :, None] == ids[:, None]) & (ids > 0)[:, None]
  return (same & np.tri(N, dtype=bool))[:, None]


def with_mask(bias, mask):
  return bias + np.where(mask, 0, -1e10)


def test_the_segments_of_a_mask():
  from selective_t5x.attention.masked_bias import segments_of

  segments = np.asarray(segments_of(jnp.asarray(mask_of(IDS)[:, 0])))
  assert segments.tolist() == [[1] * 4 + [5] * 3 + [0] * 2, [1] * 9]


@pytest.mark.parametrize('rescale', [False, True])
def test_it_is_the_function_with_segments(rescale):
  query, key, value, bias = inputs()
  expected = attention.selective_attention(
    query,
    key,
    value,
    scale=D**-0.5 if rescale else 1.0,
    bias=bias,
    segment_ids=jnp.asarray(IDS),
  )
  out = jax.jit(
    lambda bias: attention.masked_bias_attention(
      query,
      key,
      value,
      bias,
      rescale_logits=rescale,
      attention_fn=attention.selective_attention,
    )
  )(with_mask(bias, mask_of(IDS)))
  np.testing.assert_allclose(out, expected, atol=1e-6)
  plain = attention.causal_attention(
    query, key, value, bias=bias, segment_ids=jnp.asarray(IDS)
  )
  assert not np.allclose(out, plain, atol=1e-3)


def test_dropout_drops_weights_for_all_queries():
  query, key, _, bias = inputs(N)
  # With one-hot values the output is the matrix of weights.
  value = jnp.broadcast_to(jnp.eye(N)[None, :, None], (B, N, H, N))

  def weights(rate):
    return attention.masked_bias_attention(
      query,
      key,
      value,
      with_mask(bias, mask_of(IDS)),
      dropout_rng=jax.random.key(1),
      dropout_rate=rate,
      attention_fn=attention.selective_attention,
    )

  kept, dropped = weights(0.0), weights(0.5)
  ratio = np.asarray(dropped)[1] / np.maximum(np.asarray(kept)[1], 1e-30)
  lower = np.tri(N, dtype=bool)
  for head in range(H):
    columns = [set(ratio[j:, head, j].round(3)) for j in range(N)]
    assert all(column <= {0.0} or column <= {2.0} for column in columns)
  assert {0.0, 2.0} <= set(ratio[:, 0][lower].round(3))


def test_what_it_cannot_do_is_refused():
  query, key, value, bias = inputs()
  fn = {'attention_fn': attention.selective_attention}
  with pytest.raises(UserError, match='cannot decode'):
    attention.masked_bias_attention(query[:, :1], key, value, None, **fn)
  with pytest.raises(UserError, match='use_extra_logit'):
    attention.masked_bias_attention(
      query, key, value, bias, use_extra_logit=True, **fn
    )
  prefix = mask_of(IDS)
  prefix[:, :, 0, 1] = True
  out = attention.masked_bias_attention(
    query, key, value, with_mask(bias, prefix), **fn
  )
  assert np.all(np.isnan(out))
