"""Temperatures of SSA, against the softmax written out."""

import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selective_t5x import attention
from selective_t5x.attention import masks
from selective_t5x.attention.variants import temperature
from tests.attention import loops, properties

SHAPE = (properties.BATCH, properties.LENGTH)


def tokens(seed=5):
  """f(x) of queries, keys and values, f32[B, N] each."""
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.normal(size=SHAPE), jnp.float32) for _ in range(3)]


def attend(
  query, key, value, *, segment_ids=None, base=None, alpha=0.7, **of_tokens
):
  """SSA with both terms on all three, by whole rows."""
  base = base or attention.causal_attention
  places = 1 + masks.position_in_segment(query.shape[1], segment_ids)
  given = [
    temperature.tempered(
      x,
      temperature.inverse_temperature(
        of_tokens[name], alpha, places, segment_ids
      ),
      segment_ids,
    )
    for name, x in (('q', query), ('k', key), ('v', value))
  ]
  return base(*given, segment_ids=segment_ids, implementation='reference')


def per_token(seed=5):
  return dict(zip('qkv', tokens(seed), strict=True))


def tempered_loop(x, token, alpha, ids):
  """t * x, cell by cell."""
  out = np.zeros(x.shape)
  for b in range(x.shape[0]):
    place = 0
    for i in range(x.shape[1]):
      place = place + 1 if i and ids[b][i - 1] == ids[b][i] else 1
      share = 1 / (1 + math.exp(-alpha))
      t = math.tanh(token[b, i]) + 1 + share * math.log(place)
      if ids[b][i]:
        out[b, i] = t * x[b, i]
  return out


@pytest.mark.parametrize(
  ('segment_ids', 'head'), [(None, None), (properties.PACKED, 0)]
)
def test_it_is_the_written_out_softmax(segment_ids, head):
  inputs = properties.arrays()
  ids = loops.segments_of(*SHAPE, segment_ids)
  query, key, value = (
    tempered_loop(np.asarray(x), token, 0.7, ids)
    for x, token in zip(inputs, tokens(), strict=True)
  )
  wanted, _ = loops.attention_loop(
    query, key, value, 0.5, None, segment_ids, head
  )
  base = (
    attention.causal_attention
    if head is None
    else attention.selective_attention
  )
  out = attend(*inputs, segment_ids=segment_ids, base=base, **per_token())
  np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
  token=st.floats(-50, 50, width=32),
  alpha=st.floats(-50, 50, width=32),
  position=st.integers(1, 4096),
)
def test_each_term_alone_and_their_sum(token, alpha, position):
  f, a, n = (
    jnp.full((1, 1), token),
    jnp.float32(alpha),
    jnp.full((1, 1), position),
  )
  one = temperature.inverse_temperature(token=f)
  other = temperature.inverse_temperature(alpha=a, position=n)
  np.testing.assert_allclose(one, 1 + math.tanh(token), rtol=1e-5, atol=1e-6)
  share = 1 / (1 + math.exp(-alpha))
  np.testing.assert_allclose(other, 1 + share * math.log(position), rtol=1e-5)
  both = temperature.inverse_temperature(f, a, n)
  np.testing.assert_allclose(both, one + other - 1, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(temperature.inverse_temperature(), 1)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99))
def test_without_terms_it_is_plain_attention(seed):
  inputs = properties.arrays(seed)
  nothing = {name: jnp.zeros(SHAPE) for name in 'qkv'}
  np.testing.assert_allclose(
    attend(*inputs, alpha=-100.0, **nothing),
    attention.causal_attention(*inputs, implementation='reference'),
    rtol=1e-5,
    atol=1e-6,
  )


def test_padding_does_not_matter():
  properties.check_padding(
    functools.partial(attend, base=attention.selective_attention),
    properties.arrays(),
    per_token(),
  )


def test_packed_is_separate():
  properties.check_packed_is_separate(attend, properties.arrays(), per_token())


def test_what_is_cached_is_already_tempered():
  # A step needs the temperatures of its own token alone: those of keys and
  # values were applied when they entered the cache.
  query, key, value = properties.arrays()
  of = per_token()
  wanted = attend(query, key, value, **of)
  alpha = jnp.float32(0.7)
  cached = [
    temperature.tempered(
      x,
      temperature.inverse_temperature(
        of[name], alpha, 1 + masks.position_in_segment(properties.LENGTH)
      ),
    )
    for name, x in (('k', key), ('v', value))
  ]

  @properties.compiled
  def step(position):
    rows = jnp.arange(properties.BATCH)
    t = temperature.inverse_temperature(
      of['q'][rows, position][:, None], alpha, position[:, None] + 1
    )
    arguments = temperature.tempered(query[rows, position][:, None], t)
    return attention.causal_attention(arguments, *cached, position=position)

  for i in range(properties.LENGTH):
    np.testing.assert_allclose(
      step(jnp.full(properties.BATCH, i))[:, 0], wanted[:, i], atol=1e-5
    )


def test_bfloat16_stays_bfloat16():
  query, _, _ = properties.arrays(dtype=jnp.bfloat16)
  t = temperature.inverse_temperature(jnp.zeros(SHAPE, jnp.bfloat16))
  assert t.dtype == jnp.float32
  assert temperature.tempered(query, t).dtype == jnp.bfloat16
