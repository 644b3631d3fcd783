"""Differential attention, against two softmaxes written out."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selective_t5x import attention
from selective_t5x.attention.variants import differential
from tests.attention import loops, properties


def attend(*args, share=0.6, implementation='reference', **kwargs):
  return attention.differential_attention(
    *args, share=share, implementation=implementation, **kwargs
  )


def attention_loop(query, key, value, share, scale, bias, segment_ids):
  batch, length, heads, size = query.shape
  ids = loops.segments_of(batch, length, segment_ids)
  bias = np.broadcast_to(bias, (batch, heads, length, length))
  out = np.zeros(query.shape)
  halves = [(range(size // 2), 1.0), (range(size // 2, size), -share)]
  for b, h, i in np.ndindex(batch, heads, length):
    seen = [j for j in range(length) if loops.sees(ids[b], None, i, j)]
    for half, sign in halves:
      exps = [
        math.exp(
          scale * sum(float(query[b, i, h, d] * key[b, j, h, d]) for d in half)
          + bias[b, h, i, j]
        )
        for j in seen
      ]
      for weight, j in zip(exps, seen, strict=True):
        out[b, i, h] += sign * weight / sum(exps) * value[b, j, h]
  return out


@pytest.mark.parametrize(
  ('segment_ids', 'bias', 'scale'),
  [
    (None, None, None),
    (None, properties.bias_like(9, 9), None),
    (properties.PACKED, properties.bias_like(1, 2, 9, 9), 0.9),
  ],
)
def test_it_is_the_written_out_difference(segment_ids, bias, scale):
  inputs = properties.arrays()
  np.testing.assert_allclose(
    attend(*inputs, segment_ids=segment_ids, bias=bias, scale=scale),
    attention_loop(
      *map(np.asarray, inputs),
      0.6,
      2**-0.5 if scale is None else scale,
      0.0 if bias is None else bias,
      segment_ids,
    ),
    rtol=1e-5,
    atol=1e-5,
  )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), share=st.floats(0, 1))
def test_share_0_is_plain_and_equal_halves_leave_1_minus_share(seed, share):
  query, key, value = properties.arrays(seed)
  query, key = (
    jnp.concatenate([x[..., :2], x[..., :2]], axis=-1) for x in (query, key)
  )
  # Plain attention of the first halves, which has D / 2 of the values at once.
  plain = jnp.concatenate(
    [
      attention.causal_attention(
        query[..., :2], key[..., :2], part, implementation='reference'
      )
      for part in (value[..., :2], value[..., 2:])
    ],
    axis=-1,
  )
  for given_share in (0.0, share):
    np.testing.assert_allclose(
      attend(query, key, value, share=given_share),
      (1 - given_share) * plain,
      rtol=1e-4,
      atol=1e-5,
    )


def test_the_share_at_its_start():
  # 0.8 - 0.6 * exp(-0.3 * (l - 1)) for l = 1, 2, 12.
  np.testing.assert_allclose(
    [differential.initial_share(i) for i in (0, 1, 11)],
    [0.2, 0.355509, 0.777870],
    atol=1e-6,
  )
  rng = np.random.default_rng(0)
  q1, k1, q2, k2 = rng.normal(size=(4, 3)).astype(np.float32)
  np.testing.assert_allclose(
    differential.share(q1, k1, q2, k2, 0.2),
    math.exp(np.dot(q1, k1)) - math.exp(np.dot(q2, k2)) + 0.2,
    rtol=1e-5,
  )
  nothing = jnp.zeros(3)
  assert differential.share(nothing, nothing, nothing, nothing, 0.2) == 0.2


@pytest.mark.parametrize('implementation', ['reference', 'blocked'])
def test_padding_does_not_matter(implementation):
  properties.check_padding(
    lambda *args, **kwargs: attend(
      *args, implementation=implementation, **kwargs
    ),
    properties.arrays(),
  )


def test_packed_is_separate():
  properties.check_packed_is_separate(attend, properties.arrays())


@pytest.mark.parametrize('bias', [None, properties.bias_like(1, 2, 9, 9)])
def test_steps_are_the_rows_of_the_parallel_form(bias):
  properties.check_steps(attend, properties.arrays(), bias=bias)


def test_an_odd_size_is_refused():
  with pytest.raises(ValueError, match='D must be even to be halved, got 3'):
    attend(*(x[..., :3] for x in properties.arrays()))
