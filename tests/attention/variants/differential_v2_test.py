"""Two queries a head with the same keys, against two softmaxes written out."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention
from tests.attention import loops, properties


def of_tokens(seed=5):
  """The second query and lambda."""
  rng = np.random.default_rng(seed)
  shape = (properties.BATCH, properties.LENGTH, properties.HEADS)
  return {
    'second_query': jnp.asarray(
      2 * rng.normal(size=(*shape, properties.SIZE)), jnp.float32
    ),
    'share': jnp.asarray(rng.uniform(size=shape), jnp.float32),
  }


def attend(*args, implementation='reference', position=None, **kwargs):
  if position is not None:
    # Queries have no cache: those of the token itself.
    rows = jnp.arange(properties.BATCH)
    for name, x in of_tokens().items():
      kwargs[name] = x[rows, position][:, None]
  return attention.differential_v2_attention(
    *args, implementation=implementation, position=position, **kwargs
  )


def attention_loop(queries, key, value, share, scale, bias, segment_ids):
  batch, length, heads, size = key.shape
  ids = loops.segments_of(batch, length, segment_ids)
  bias = np.broadcast_to(bias, (batch, heads, length, length))
  out = np.zeros(key.shape)
  for b, h, i in np.ndindex(batch, heads, length):
    seen = [j for j in range(length) if loops.sees(ids[b], None, i, j)]
    for query, factor in zip(queries, (1.0, -share[b, i, h]), strict=True):
      dots = [float(np.sum(query[b, i, h] * key[b, j, h])) for j in seen]
      exps = [
        math.exp(scale * dot + bias[b, h, i, j])
        for dot, j in zip(dots, seen, strict=True)
      ]
      for weight, j in zip(exps, seen, strict=True):
        out[b, i, h] += factor * weight / sum(exps) * value[b, j, h]
  return out


@pytest.mark.parametrize('implementation', ['reference', 'blocked'])
@pytest.mark.parametrize(
  ('segment_ids', 'bias', 'scale'),
  [
    (None, None, None),
    (None, properties.bias_like(9, 9), None),
    (properties.PACKED, properties.bias_like(1, 2, 9, 9), 0.9),
  ],
)
def test_it_is_the_written_out_difference(
  segment_ids, bias, scale, implementation
):
  query, key, value = properties.arrays()
  of = of_tokens()
  out = attend(
    query,
    key,
    value,
    segment_ids=segment_ids,
    bias=bias,
    scale=scale,
    implementation=implementation,
    **of,
  )
  wanted = attention_loop(
    [np.asarray(query), np.asarray(of['second_query'])],
    np.asarray(key),
    np.asarray(value),
    np.asarray(of['share']),
    0.5 if scale is None else scale,  # 4 ** -0.5
    0.0 if bias is None else bias,
    segment_ids,
  )
  np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-5)


def test_share_0_is_plain_and_equal_queries_leave_1_minus_share():
  query, key, value = properties.arrays()
  of = of_tokens()
  plain = attention.causal_attention(query, key, value)
  none = attend(
    query, key, value, **(of | {'share': jnp.zeros_like(of['share'])})
  )
  np.testing.assert_allclose(none, plain, rtol=1e-5, atol=1e-6)
  same = attend(query, key, value, **(of | {'second_query': query}))
  np.testing.assert_allclose(
    same, (1 - of['share'][..., None]) * plain, rtol=1e-4, atol=1e-5
  )


def test_padding_does_not_matter():
  properties.check_padding(attend, properties.arrays(), of_tokens())


def test_packed_is_separate():
  properties.check_packed_is_separate(attend, properties.arrays(), of_tokens())


@pytest.mark.parametrize('bias', [None, properties.bias_like(1, 2, 9, 9)])
def test_steps_are_the_rows_of_the_parallel_form(bias):
  properties.check_steps(
    attend, properties.arrays(), per_token=of_tokens(), bias=bias
  )


@pytest.mark.parametrize('name', ['second_query', 'share'])
def test_shapes_that_do_not_fit_are_named(name):
  of = of_tokens()
  of[name] = of[name][:, :3]
  with pytest.raises(ValueError, match='second_query must be as query'):
    attend(*properties.arrays(), **of)
