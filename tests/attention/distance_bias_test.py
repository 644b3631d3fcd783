"""Biases by distance: their array, and every implementation with them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention
from selective_t5x.attention import checks
from selective_t5x.attention.distance_bias import DistanceBias
from selective_t5x.errors import UserError
from tests.attention.live_keys_test import ROUNDING, forgetful, segments


def biases(heads, behind, ahead, seed=0, size=1.0):
  values = np.random.default_rng(seed).normal(size=(heads, behind + ahead + 1))
  return DistanceBias(jnp.asarray(size * values, jnp.float32), ahead)


def written_out(bias, queries, keys):
  """The formula, one number after another."""
  values = np.asarray(bias.values)
  behind = values.shape[1] - 1 - bias.ahead
  out = np.zeros((len(values), queries, keys), values.dtype)
  for i in range(queries):
    for j in range(keys):
      distance = min(max(j - i, -behind), bias.ahead)
      out[:, i, j] = values[:, distance + behind]
  return out[None]


@pytest.mark.parametrize('behind,ahead', [(0, 0), (3, 0), (2, 4), (30, 5)])
@pytest.mark.parametrize('queries,keys', [(1, 1), (9, 9), (4, 11), (11, 4)])
def test_the_array_has_the_bias_of_each_distance(behind, ahead, queries, keys):
  bias = biases(2, behind, ahead)
  wanted = written_out(bias, queries, keys)
  np.testing.assert_array_equal(bias.matrix(queries, keys), wanted)
  position = jnp.arange(queries)
  np.testing.assert_array_equal(
    bias.step(position, keys), wanted[0].swapaxes(0, 1)[:, :, None]
  )
  np.testing.assert_array_equal(
    jax.jit(lambda first: bias.block(first, 2, keys))(3),
    written_out(bias, 5, keys)[:, :, 3:],
  )
  length = max(queries, keys)
  shorter = bias.within(length, causal=False)
  np.testing.assert_array_equal(shorter.matrix(queries, keys), wanted)
  assert shorter.values.shape[1] <= 2 * length - 1
  causal = bias.within(length, causal=True).matrix(length, length)
  np.testing.assert_array_equal(
    np.tril(causal), np.tril(written_out(bias, length, length))
  )


@pytest.mark.parametrize('behind,ahead', [(0, 0), (5, 0), (3, 6), (40, 2)])
def test_a_window_has_the_biases_of_every_block(behind, ahead):
  bias, block, length = biases(2, behind, ahead), 4, 24
  window = bias.window(block)
  assert window.rows.shape == (1, 2, behind + block + ahead, block)
  wanted = written_out(bias, length, length)
  for first in range(0, length, block):
    of_block = window.of_keys(jnp.arange(length), first)
    np.testing.assert_array_equal(
      of_block.swapaxes(2, 3), wanted[:, :, first : first + block]
    )
  listed = jnp.asarray([[0, 3, 9], [7, 8, 23]])
  of_list = window.of_keys(listed, 8)
  for row, keys in zip(of_list, np.asarray(listed), strict=True):
    np.testing.assert_array_equal(
      row.swapaxes(1, 2), wanted[0, :, 8:12][:, :, keys]
    )


def results_of(function, arrays, bias, as_array, implementation, **settings):
  """Outputs, and gradients by query, key, value and the biases' values."""
  length = arrays[0].shape[1]

  def loss(arrays, values):
    given = bias.map(lambda _: values)
    given = given.matrix(length, length) if as_array else given
    results = function(
      *arrays, bias=given, implementation=implementation, **settings
    )
    results = results if isinstance(results, tuple) else (results,)
    return sum(jnp.sum(jnp.sin(3 * x)) for x in results), results

  compiled = jax.jit(
    jax.grad(loss, argnums=(0, 1), has_aux=True),
    compiler_options={'xla_backend_optimization_level': 0},
  )
  return compiled(arrays, bias.values)


def check(function, arrays, bias, packed=False, tolerance=1e-5, **settings):
  """Compares 'blocked' and the reference with the reference and an array."""
  batch, length = arrays[0].shape[:2]
  if packed:
    rng = np.random.default_rng(length)
    settings['segment_ids'] = segments(rng, batch, length)
  run = functools.partial(results_of, function, arrays, bias)
  forget_below = {
    name: settings.pop(name) for name in ('forget_below',) if name in settings
  }
  wanted = run(True, 'reference', **settings)
  for got in (
    run(False, 'reference', **settings),
    run(False, 'blocked', **settings, **forget_below),
  ):
    for one, other in zip(
      jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True
    ):
      largest = max(1.0, float(jnp.max(jnp.abs(other))))
      np.testing.assert_allclose(one, other, atol=tolerance * largest, rtol=0)


# Lengths shorter and longer than the reach, in one block, several, and spans.
CASES = {
  'one token': dict(length=1),
  'one block': dict(length=45),
  'short reach': dict(length=150, behind=3, packed=True),
  'long reach': dict(length=200, behind=128, packed=True, memory_tau=2.0),
  'longer than rows': dict(length=70, behind=300),
  'loops': dict(length=700, behind=128, batch=1, packed=True),
  'one for all heads': dict(length=140, bias_heads=1, selection_groups=2),
  'mean': dict(length=140, selection_head='mean', behind=20),
  'per head': dict(length=140, selection_head='per_head', packed=True),
  'groups': dict(length=140, selection_groups=2, memory_tau=1.0),
  'bias of heads alone': dict(length=140, selection_bias=False, packed=True),
  'keys ahead': dict(length=140, ahead=7),
  'faded': dict(length=140, masking_scale=0.4),
  # Sums of unclipped scores get large, and so does their rounding.
  'without relu': dict(length=70, relu=False, size=0.2),
}


@pytest.mark.parametrize('forget_below', [0.0, ROUNDING])
@pytest.mark.parametrize('name', CASES)
def test_selective_attention_equals_the_reference(name, forget_below):
  case = dict(CASES[name])
  batch, length = case.pop('batch', 2), case.pop('length')
  bias = biases(
    case.pop('bias_heads', 4), case.pop('behind', 20), case.pop('ahead', 0)
  )
  arrays = forgetful(0, (batch, length, 4, 8), size=case.pop('size', 2.0))
  check(
    attention.selective_attention,
    arrays,
    bias,
    forget_below=forget_below,
    **case,
  )


@pytest.mark.parametrize('packed', [False, True])
def test_plain_attention_equals_the_reference(packed):
  arrays = forgetful(0, (2, 150, 4, 8))
  check(attention.causal_attention, arrays, biases(4, 128, 0), packed)


def test_differential_attention_equals_the_reference():
  arrays = forgetful(0, (2, 70, 2, 8))
  check(
    functools.partial(attention.differential_attention, share=0.3),
    arrays,
    biases(2, 20, 0),
  )


def test_a_huge_far_bias_keeps_its_keys_alive():
  """What a key is proved dead with is the largest bias of any distance."""
  length = 300
  arrays = forgetful(0, (1, length, 4, 8))
  bias = biases(4, 128, 0)
  lifted = bias.map(lambda values: values.at[:, 0].add(60.0))

  def live(bias):
    _, count = attention.selective_attention(
      *arrays,
      bias=bias,
      selection_bias=False,
      forget_below=ROUNDING,
      return_live_keys=True,
      implementation='blocked',
    )
    return float(jnp.sum(count))

  assert live(lifted) > live(bias)
  check(
    attention.selective_attention,
    arrays,
    lifted,
    selection_bias=False,
    forget_below=ROUNDING,
  )


def test_steps_equal_whole_rows():
  length = 12
  query, key, value = forgetful(0, (2, length, 2, 4))
  bias = biases(2, 5, 0)
  wanted, row = attention.selective_attention(
    query, key, value, bias=bias, masking_row=jnp.asarray([4, 9])
  )
  as_array, same_row = attention.selective_attention(
    query,
    key,
    value,
    bias=bias.matrix(length, length),
    masking_row=jnp.asarray([4, 9]),
  )
  np.testing.assert_allclose(wanted, as_array, atol=1e-5)
  np.testing.assert_allclose(row, same_row, atol=1e-5)
  plain = attention.causal_attention(query, key, value, bias=bias)
  masking = jnp.zeros((2, length))
  for i in range(length):
    position = jnp.full((2,), i)
    given = dict(bias=bias, position=position)
    out, masking = attention.selective_attention(
      query[:, i : i + 1], key, value, masking=masking, **given
    )
    np.testing.assert_allclose(out[:, 0], wanted[:, i], atol=1e-5)
    out = attention.causal_attention(query[:, i : i + 1], key, value, **given)
    np.testing.assert_allclose(out[:, 0], plain[:, i], atol=1e-5)


def largest_array(text):
  """The number of entries of the largest array in a compiled program."""
  sizes = re.findall(r'\b(?:f32|bf16|f16|s32|pred|u8)\[([\d,]+)\]', text)
  return max(int(np.prod([int(n) for n in x.split(',')])) for x in sizes)


@pytest.mark.parametrize('forget_below', [0.0, ROUNDING])
def test_no_array_of_n_by_n_is_made(forget_below):
  heads, length = 4, 4096

  def loss(arrays, values):
    return jnp.sum(
      attention.selective_attention(
        *arrays,
        bias=DistanceBias(values),
        forget_below=forget_below,
        implementation='blocked',
      )
    )

  arrays = [jax.ShapeDtypeStruct((1, length, heads, 8), jnp.float32)] * 3
  values = jax.ShapeDtypeStruct((heads, 129), jnp.float32)
  compiled = (
    jax.jit(
      jax.grad(loss, argnums=(0, 1)),
      compiler_options={'xla_backend_optimization_level': 0},
    )
    .lower(arrays, values)
    .compile()
  )
  # A tile, [H, N, block], is the largest.
  assert largest_array(compiled.as_text()) <= heads * length * 128
  assert compiled.memory_analysis().temp_size_in_bytes < (
    4 * heads * length * length / 4
  )


@pytest.mark.parametrize('head', [1, 'per_head'])
def test_blocks_of_rows_of_masking_take_it_too(head):
  query, key, value = forgetful(0, (2, 12, 2, 4))
  bias, total = biases(2, 3, 0), None
  attend = functools.partial(
    attention.selective_attention, selection_head=head, bias=bias
  )
  _, wanted = attend(query, key, value, return_masking=True)
  for first in (0, 5, 10):
    block = query[:, first : first + 5]
    rows, total = attend(
      block, key, value, block_start=jnp.array(first), masking=total
    )
    np.testing.assert_allclose(
      rows, wanted[..., first : first + 5, :], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
  'bias,message',
  [
    (DistanceBias(jnp.zeros(5)), r'must be \[H, R\] or \[1, R\] with H = 2'),
    (DistanceBias(jnp.zeros((3, 5))), r'H = 2, got \[3, 5\]'),
    (DistanceBias(jnp.zeros((2, 5)), 5), 'ahead = 5: expected 0 to 4'),
  ],
)
def test_a_bias_that_does_not_fit_is_one_line(bias, message):
  arrays = forgetful(0, (1, 9, 2, 4))
  with pytest.raises(ValueError, match=message):
    attention.selective_attention(*arrays, bias=bias)


def test_functions_that_take_arrays_alone_say_so():
  arrays = forgetful(0, (1, 9, 2, 4))
  with pytest.raises(ValueError, match='takes an array as bias, got a'):
    checks.shapes(*arrays, biases(2, 3, 0), None)


FULL = {
  'both ways': dict(queries=70, behind=20, ahead=9),
  'packed': dict(queries=300, behind=128, ahead=128, packed=True),
  'rows shorter than the reach': dict(queries=50, behind=128, ahead=64),
  'one for all heads': dict(queries=140, heads=1, behind=5, ahead=200),
  'cross': dict(queries=150, keys=40, packed=True),
  'cross, more keys': dict(queries=20, keys=150, behind=6, ahead=3),
  'no bias': dict(queries=140, behind=None, packed=True),
  'an array': dict(queries=140, behind=None, array=(1, 2, 140, 140)),
  'an array of keys': dict(queries=140, behind=None, array=(2, 1, 1, 140)),
}


@pytest.mark.parametrize('name', FULL)
def test_full_attention_equals_the_reference(name):
  case = FULL[name]
  queries = case['queries']
  keys = case.get('keys', queries)
  rng = np.random.default_rng(queries)
  query, key, value = (
    jnp.asarray(rng.normal(size=(2, n, 2, 8)), jnp.float32)
    for n in (queries, keys, keys)
  )
  query_ids = jnp.ones((2, queries), jnp.int32)
  key_ids = jnp.ones((2, keys), jnp.int32)
  if case.get('packed'):
    # Padding, and segments without a key.
    query_ids = segments(rng, 2, queries)
    key_ids = segments(rng, 2, keys)
  bias = None
  if case.get('behind', 20) is not None:
    bias = biases(
      case.get('heads', 2), case.get('behind', 20), case.get('ahead', 0)
    )
  elif 'array' in case:
    bias = jnp.asarray(rng.normal(size=case['array']), jnp.float32)

  def loss(arrays, bias, implementation):
    out = attention.full_attention(
      *arrays,
      bias=bias,
      query_ids=query_ids,
      key_ids=key_ids,
      implementation=implementation,
    )
    return jnp.sum(jnp.sin(3 * out)), out

  def run(bias, implementation):
    compiled = jax.jit(
      jax.grad(
        lambda arrays, bias: loss(arrays, bias, implementation),
        argnums=(0, 1),
        has_aux=True,
      ),
      compiler_options={'xla_backend_optimization_level': 0},
    )
    return jax.tree.leaves(compiled((query, key, value), bias))

  got, wanted = run(bias, 'blocked'), run(bias, 'reference')
  for one, other in zip(got, wanted, strict=True):
    largest = max(1.0, float(jnp.max(jnp.abs(other))))
    np.testing.assert_allclose(one, other, atol=1e-5 * largest, rtol=0)
  if isinstance(bias, DistanceBias):
    out, _ = loss((query, key, value), bias.matrix(queries, keys), 'reference')
    np.testing.assert_allclose(
      out, loss((query, key, value), bias, 'blocked')[0], rtol=1e-4
    )


def test_full_attention_confines_what_is_not_finite():
  rng = np.random.default_rng(0)
  query, key, value = (
    jnp.asarray(rng.normal(size=(2, 150, 2, 4)), jnp.float32) for _ in range(3)
  )
  ids = segments(rng, 2, 150)
  query = query.at[0, 3, 1].set(jnp.nan).at[1, 140].set(jnp.inf)
  value = value.at[0, 90, 0, 1].set(jnp.nan).at[1, 60].set(jnp.nan)
  out = [
    attention.full_attention(
      query,
      key,
      value,
      query_ids=ids,
      key_ids=ids,
      implementation=implementation,
    )
    for implementation in ('blocked', 'reference')
  ]
  assert 0 < np.mean(np.isnan(out[0])) < 0.9
  np.testing.assert_allclose(*out, atol=1e-5)


def test_long_rows_are_read_in_blocks_by_default():
  def largest(queries):
    tokens = jax.ShapeDtypeStruct((1, queries, 2, 4), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, queries), jnp.int32)

    def loss(query, key, value, values, ids):
      bias = DistanceBias(values, 128)
      return jnp.sum(
        attention.full_attention(
          query, key, value, bias=bias, query_ids=ids, key_ids=ids
        )
      )

    compiled = (
      jax.jit(
        jax.grad(loss, argnums=(0, 1, 2, 3)),
        compiler_options={'xla_backend_optimization_level': 0},
      )
      .lower(
        tokens, tokens, tokens, jax.ShapeDtypeStruct((2, 257), jnp.float32), ids
      )
      .compile()
    )
    return largest_array(compiled.as_text())

  assert largest(400) >= 2 * 400 * 400
  assert largest(2048) <= 2 * 2048 * 128


def test_full_attention_names_its_implementations():
  tokens = jnp.zeros((1, 4, 2, 4))
  ids = jnp.ones((1, 4), jnp.int32)
  with pytest.raises(
    UserError, match="full_attention.implementation = 'block'.*nearest: blocked"
  ):
    attention.full_attention(
      *[tokens] * 3, query_ids=ids, key_ids=ids, implementation='block'
    )
