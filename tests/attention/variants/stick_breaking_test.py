"""Stick-breaking attention, against products written out."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from selective_t5x import attention
from selective_t5x.attention.variants.stick_breaking import (
  stick_breaking_weights,
)
from selective_t5x.errors import UserError
from tests.attention import loops, properties

attend = attention.stick_breaking_attention


REST = np.random.default_rng(3).normal(size=(2, 4)).astype(np.float32)
REMAINDERS = {
  'none': {},
  'value': {'remainder': 'value'},
  'bias': {'remainder': 'bias', 'remainder_bias': REST},
}


def attention_loop(
  query, key, value, scale, bias, segment_ids, remainder='none'
):
  batch, length, heads, size = query.shape
  ids = loops.segments_of(batch, length, segment_ids)
  bias = np.broadcast_to(bias, (batch, heads, length, length))
  out = np.zeros(query.shape)
  for b, h, i in np.ndindex(batch, heads, length):
    left = 1.0
    for j in range(i - 1, -1, -1):
      if ids[b][i] == 0 or ids[b][i] != ids[b][j]:
        continue
      dot = sum(float(query[b, i, h, d] * key[b, j, h, d]) for d in range(size))
      taken = 1 / (1 + math.exp(-(scale * dot + bias[b, h, i, j])))
      out[b, i, h] += left * taken * value[b, j, h]
      left *= 1 - taken
    if ids[b][i] and remainder != 'none':
      out[b, i, h] += left * (
        REST[h] if remainder == 'bias' else value[b, i, h]
      )
  return out


@pytest.mark.parametrize('remainder', REMAINDERS)
@pytest.mark.parametrize(
  ('segment_ids', 'bias', 'scale'),
  [
    (None, None, None),
    (properties.PACKED, properties.bias_like(1, 2, 9, 9), 0.9),
  ],
)
def test_it_is_the_written_out_product(segment_ids, bias, scale, remainder):
  inputs = properties.arrays()
  np.testing.assert_allclose(
    attend(
      *inputs,
      segment_ids=segment_ids,
      bias=bias,
      scale=scale,
      **REMAINDERS[remainder],
    ),
    attention_loop(
      *map(np.asarray, inputs),
      0.5 if scale is None else scale,  # 4 ** -0.5
      0.0 if bias is None else bias,
      segment_ids,
      remainder,
    ),
    rtol=1e-5,
    atol=1e-5,
  )


def test_a_token_does_not_see_itself_and_the_first_sees_nothing():
  query, key, value = properties.arrays()
  run = properties.compiled(attend)
  out = run(query, key, value, segment_ids=properties.PACKED)
  starts = np.diff(properties.PACKED, prepend=-1) != 0
  np.testing.assert_array_equal(out[starts], 0)
  changed = run(query, key.at[:, 4].add(1.0), value.at[:, 4].add(1.0))
  plain = run(query, key, value)
  np.testing.assert_array_equal(changed[:, :5], plain[:, :5])
  assert np.all(changed[:, 5] != plain[:, 5])


break_row = jax.jit(stick_breaking_weights)


@settings(max_examples=50, deadline=None)
@given(
  row=st.lists(st.floats(-300, 300, width=32), min_size=8, max_size=8),
  seen=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_shares_of_one_stick(row, seen):
  weights = np.asarray(break_row(np.array(row, np.float32), np.array(seen)))
  assert np.all(weights >= 0) and np.sum(weights) <= 1 + 1e-6
  np.testing.assert_array_equal(weights[~np.array(seen)], 0)
  left = 1 - np.sum(weights)
  every = [1 / (1 + math.exp(z)) for z, s in zip(row, seen, strict=True) if s]
  np.testing.assert_allclose(left, math.prod(every), atol=1e-6)


def test_huge_logits_have_finite_gradients():
  logits = jnp.array([1e4, -1e4, 0.0, 1e4])

  def last(x):
    return stick_breaking_weights(x, jnp.ones(4, bool))[0]

  assert np.all(np.isfinite(jax.grad(last)(logits)))


@pytest.mark.parametrize('remainder', REMAINDERS)
def test_its_gradient(float64, remainder):
  inputs = properties.arrays(dtype=np.float64)
  settings = REMAINDERS[remainder]
  function = jax.jit(
    lambda *args: attend(*args, segment_ids=properties.PACKED, **settings)
  )
  check_grads(function, inputs, order=1, modes=('rev',))


@pytest.mark.parametrize('remainder', REMAINDERS)
def test_padding_does_not_matter(remainder):
  function = functools.partial(attend, **REMAINDERS[remainder])
  properties.check_padding(function, properties.arrays())


@pytest.mark.parametrize('remainder', REMAINDERS)
def test_packed_is_separate(remainder):
  function = functools.partial(attend, **REMAINDERS[remainder])
  properties.check_packed_is_separate(function, properties.arrays())


@pytest.mark.parametrize('remainder', REMAINDERS)
@pytest.mark.parametrize('bias', [None, properties.bias_like(1, 2, 9, 9)])
def test_steps_are_the_rows_of_the_parallel_form(bias, remainder):
  function = functools.partial(attend, **REMAINDERS[remainder])
  properties.check_steps(function, properties.arrays(), bias=bias)


def test_with_the_own_value_all_of_the_stick_is_given():
  query, key, value = properties.arrays()
  ones = jnp.ones_like(value)
  out = attend(query, key, ones, remainder='value')
  np.testing.assert_allclose(out, ones, rtol=1e-5)


@pytest.mark.parametrize(
  ('settings', 'error', 'message'),
  [
    ({'remainder': 'lost'}, UserError, "'lost': expected 'none', 'value' or"),
    ({'remainder': 'bias'}, UserError, 'there is no learned bias'),
    ({'remainder_bias': REST}, UserError, "'none', but there is a learned"),
    (
      {'remainder': 'bias', 'remainder_bias': REST[:1]},
      ValueError,
      r'must be \[H, D\] = \[2, 4\], got \[1, 4\]',
    ),
  ],
)
def test_a_remainder_that_cannot_be_is_named(settings, error, message):
  with pytest.raises(error, match=message):
    attend(*properties.arrays(), **settings)


def test_bfloat16_gives_bfloat16_near_float32():
  inputs = properties.arrays(dtype=jnp.bfloat16)
  out = attend(*inputs)
  assert out.dtype == jnp.bfloat16
  exact = attend(*(x.astype(jnp.float32) for x in inputs))
  np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.03)


def test_shapes_that_do_not_fit_are_named():
  query, key, value = properties.arrays()
  with pytest.raises(ValueError, match=r'one shape \[B, N, H, D\]'):
    attend(query[:, :3], key, value)
  with pytest.raises(ValueError, match=r'one query, \[B, 1, H, D\]'):
    attend(query, key, value, position=jnp.zeros(2, int))
