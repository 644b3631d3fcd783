"""Forgetting attention, against gates multiplied one by one."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selective_t5x import attention
from tests.attention import loops, properties

attend = functools.partial(
  attention.forgetting_attention, implementation='reference'
)
plain = functools.partial(
  attention.causal_attention, implementation='reference'
)


def gates(seed=3, dtype=np.float32):
  """log f, [B, N, H], of gates from nearly 0 to nearly 1."""
  shape = (properties.BATCH, properties.LENGTH, properties.HEADS)
  logits = 2 * np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(-np.log1p(np.exp(-logits)), dtype)


def attention_loop(query, key, value, log_forget, scale, bias, segment_ids):
  batch, length, heads, size = query.shape
  ids = loops.segments_of(batch, length, segment_ids)
  bias = np.broadcast_to(bias, (batch, heads, length, length))
  out = np.zeros(query.shape)
  for b, h, i in np.ndindex(batch, heads, length):
    weights = {}
    for j in range(i + 1):
      if ids[b][i] == 0 or ids[b][i] != ids[b][j]:
        continue
      dot = sum(float(query[b, i, h, d] * key[b, j, h, d]) for d in range(size))
      weights[j] = math.exp(scale * dot + bias[b, h, i, j])
      for k in range(j + 1, i + 1):
        weights[j] *= math.exp(log_forget[b, k, h])
    for j, weight in weights.items():
      out[b, i, h] += weight / sum(weights.values()) * value[b, j, h]
  return out


@pytest.mark.parametrize(
  ('segment_ids', 'bias'),
  [(None, None), (properties.PACKED, properties.bias_like(1, 2, 9, 9))],
)
@pytest.mark.parametrize('implementation', ['reference', 'blocked'])
def test_it_is_the_written_out_product(segment_ids, bias, implementation):
  inputs = properties.arrays()
  out = attend(
    *inputs,
    log_forget=gates(),
    segment_ids=segment_ids,
    bias=bias,
    scale=0.9,
    implementation=implementation,
  )
  wanted = attention_loop(
    *map(np.asarray, (*inputs, gates())),
    0.9,
    0.0 if bias is None else bias,
    segment_ids,
  )
  np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), gate=st.floats(0.01, 1.0))
def test_equal_gates_are_a_bias_by_distance_and_1_is_plain(seed, gate):
  inputs = properties.arrays(seed)
  equal = jnp.full(inputs[0].shape[:3], math.log(gate))
  places = np.arange(properties.LENGTH)
  distance = math.log(gate) * (places[:, None] - places)
  for bias in (distance, None if gate == 1.0 else distance):
    np.testing.assert_allclose(
      attend(*inputs, log_forget=equal),
      plain(*inputs, bias=bias),
      rtol=1e-4,
      atol=1e-4,
    )


def test_fast_and_written_out_have_the_same_gradients():
  inputs = (*properties.arrays(), gates())

  def loss(*args, implementation):
    out = attend(
      *args[:3],
      log_forget=args[3],
      segment_ids=properties.PACKED,
      implementation=implementation,
    )
    return jnp.sum(jnp.sin(out))

  fast, slow = (
    properties.compiled(
      jax.grad(lambda *a, n=name: loss(*a, implementation=n), (0, 1, 2, 3))
    )(*inputs)
    for name in ('blocked', 'reference')
  )
  for one, other in zip(fast, slow, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_padding_does_not_matter():
  properties.check_padding(attend, properties.arrays(), {'log_forget': gates()})


def test_packed_is_separate():
  properties.check_packed_is_separate(
    attend, properties.arrays(), {'log_forget': gates()}
  )


@pytest.mark.parametrize('bias', [None, properties.bias_like(1, 2, 9, 9)])
def test_steps_are_the_rows_of_the_parallel_form(bias):
  properties.check_steps(
    attend, properties.arrays(), {'log_forget': gates()}, bias
  )


def test_a_long_row_keeps_its_digits():
  # The sum of 1,024 gates of 0.5 is -710; what matters are differences.
  rng = np.random.default_rng(0)
  length = 1024
  query, key, value = (
    jnp.asarray(rng.normal(size=(1, length, 1, 4)), jnp.float32)
    for _ in range(3)
  )
  log_forget = jnp.full((1, length, 1), math.log(0.5))
  out = attend(query, key, value, log_forget=log_forget)
  end = slice(length - 64, length)  # 0.5 ** 64 is nothing.
  wanted = attention_loop(
    *(np.asarray(x[:, end]) for x in (query, key, value, log_forget)),
    0.5,
    0.0,
    None,
  )
  np.testing.assert_allclose(out[:, -8:], wanted[:, -8:], atol=1e-3)


def test_gates_that_do_not_fit_are_named():
  with pytest.raises(ValueError, match=r'log_forget must be .* \[2, 9, 2\]'):
    attend(*properties.arrays(), log_forget=gates()[:, :3])
