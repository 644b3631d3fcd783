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
from selective_t5x.attention.variants.forgetting import forget_bias, gate_sums
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


LONG = 2048


def long_row(seed=0):
  """A row of 2,048 gates from 0.4 to 0.6: their logs sum to about -1,420."""
  rng = np.random.default_rng(seed)
  query, key, value = (
    rng.normal(size=(1, LONG, 1, 4)).astype(np.float32) for _ in range(3)
  )
  log_forget = np.log(rng.uniform(0.4, 0.6, size=(1, LONG, 1)))
  return query, key, value, log_forget.astype(np.float32)


def test_sums_of_a_long_row_are_those_of_float64():
  log_forget = long_row()[-1]
  wanted = np.cumsum(log_forget.astype(np.float64), axis=1)
  whole, part = jax.jit(gate_sums)(log_forget)
  np.testing.assert_allclose(
    np.asarray(whole, np.float64) + np.asarray(part), wanted, rtol=0, atol=1e-6
  )
  assert np.all(whole == np.round(whole)) and np.max(np.abs(part)) <= 0.5
  # Rounded once.
  np.testing.assert_allclose(
    -np.asarray(forget_bias(log_forget)[:, 0, 0], np.float64),
    wanted[..., 0],
    rtol=0,
    atol=2.0**-14,
  )
  last = np.array([[LONG - 1]])
  near = forget_bias(log_forget, query=last)[0, 0, 0, -20:]
  wanted = wanted[0, -1, 0] - wanted[0, -20:, 0]
  np.testing.assert_allclose(near, wanted, rtol=0, atol=2e-6)


def long_row_in_float64(query, key, value, log_forget, rows):
  """The outputs of a few rows, and of their sum the gradient of the gates."""
  out, grad = [], np.zeros(LONG)
  sums = np.cumsum(log_forget[0, :, 0].astype(np.float64))
  query, key, value = (
    x[0, :, 0].astype(np.float64) for x in (query, key, value)
  )
  for i in rows:
    logits = 0.5 * key[: i + 1] @ query[i] + sums[i] - sums[: i + 1]
    weights = np.exp(logits - logits.max())
    weights /= weights.sum()
    out.append(weights @ value[: i + 1])
    # d logit[j] / d log f[k] is 1 for j < k <= i.
    slope = weights * (value[: i + 1].sum(axis=1) - out[-1].sum())
    grad[1 : i + 1] += np.cumsum(slope)[:-1]
  return np.array(out), grad


@pytest.mark.parametrize('implementation', ['reference', 'blocked'])
def test_a_long_row_keeps_its_digits(implementation):
  inputs, rows = long_row(), np.array([700, 1500, LONG - 1])

  def loss(log_forget):
    out = attend(
      *map(jnp.asarray, inputs[:3]),
      log_forget=log_forget,
      implementation=implementation,
    )[0, rows, 0]
    return jnp.sum(out), out

  grad, out = properties.compiled(jax.grad(loss, has_aux=True))(inputs[3])
  wanted, wanted_grad = long_row_in_float64(*inputs, rows)
  np.testing.assert_allclose(out, wanted, rtol=0, atol=3e-6)
  np.testing.assert_allclose(grad[0, :, 0], wanted_grad, rtol=0, atol=3e-6)


def test_steps_of_a_long_row_keep_their_digits():
  inputs, rows = long_row(), [1500, LONG - 1]
  wanted, _ = long_row_in_float64(*inputs, rows)
  query, key, value, log_forget = map(jnp.asarray, inputs)

  @properties.compiled
  def step(query, position):
    return attention.forgetting_attention(
      query, key, value, log_forget=log_forget, position=position
    )

  for i, row in zip(rows, wanted, strict=True):
    out = step(query[:, i : i + 1], jnp.array([i]))
    np.testing.assert_allclose(out[0, 0, 0], row, rtol=0, atol=3e-6)


@pytest.mark.parametrize('implementation', ['reference', 'blocked'])
def test_a_gate_of_0_forgets_all_before_and_nothing_after(implementation):
  query, key, value = properties.arrays()
  log_forget = gates().at[:, 4].set(-jnp.inf)

  def loss(log_forget):
    out = attend(
      query, key, value, log_forget=log_forget, implementation=implementation
    )
    return jnp.sum(jnp.sin(out)), out

  grad, out = properties.compiled(jax.grad(loss, has_aux=True))(log_forget)
  later = attend(
    *(x[:, 4:] for x in (query, key, value)), log_forget=log_forget[:, 4:]
  )
  np.testing.assert_allclose(out[:, 4:], later, rtol=1e-5, atol=1e-5)
  assert np.all(np.isfinite(grad))


def test_gates_that_do_not_fit_are_named():
  with pytest.raises(ValueError, match=r'log_forget must be .* \[2, 9, 2\]'):
    attend(*properties.arrays(), log_forget=gates()[:, :3])
