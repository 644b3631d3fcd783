"""Attention that drops dead keys: its bound, and equality to the reference."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from selective_t5x import attention
from selective_t5x.attention import live_keys, masks
from selective_t5x.attention.blocked_tiles import Keys, Queries
from selective_t5x.errors import UserError
from tests.support import smoke

ROUNDING = 2.0**-24
BLOCK = 8


def forgetful(seed, shape, share=0.8, size=2.0):
  """Query, key and value, of which `share` of the keys die within some tokens.

  Head 0 of every query points one way, and these keys lie that way.
  """
  batch, length, heads, depth = shape
  rng = np.random.default_rng(seed)
  query, key, value = (rng.normal(size=shape) for _ in range(3))
  way = size * rng.normal(size=depth)
  dies = rng.random((batch, length, 1)) < share
  query[:, :, 0] += way
  key[:, :, 0] += np.where(dies, way, -way)
  return [jnp.asarray(x, jnp.float32) for x in (query, key, value)]


def segments(rng, batch, length):
  """Runs of ids, some of them padding."""
  ids = np.repeat(rng.integers(0, 4, (batch, length)), 7, axis=1)[:, :length]
  return jnp.asarray(np.sort(ids, axis=1)[:, ::-1], jnp.int32)


def with_gradients(implementation, arrays, **settings):
  """Returns the outputs and all gradients of a loss of them, jitted."""
  names = [name for name in settings if name.endswith('bias')]
  arrays = [*arrays, *(settings.pop(name) for name in names)]

  def loss(arrays):
    results = attention.selective_attention(
      *arrays[:3],
      **dict(zip(names, arrays[3:], strict=True)),
      implementation=implementation,
      **settings,
    )
    results = results if isinstance(results, tuple) else (results,)
    return sum(jnp.sum(jnp.sin(3 * x)) for x in results), results

  compiled = jax.jit(
    jax.value_and_grad(loss, has_aux=True),
    compiler_options={'xla_backend_optimization_level': 0},
  )
  (_, results), gradients = compiled(arrays)
  return results, gradients


def check_equal(arrays, *, tolerance=1e-5, forget_below=ROUNDING, **settings):
  got = with_gradients('blocked', arrays, forget_below=forget_below, **settings)
  wanted = with_gradients('reference', arrays, **settings)
  for one, other in zip(
    jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True
  ):
    largest = max(1.0, float(jnp.max(jnp.abs(other))))
    np.testing.assert_allclose(one, other, atol=tolerance * largest, rtol=0)


@pytest.mark.parametrize(
  'settings',
  smoke.first(
    [
      {'selection_groups': 2, 'memory_tau': 3.0},
      {'selection_head': 'per_head', 'memory_tau': 2.0},
      {'selection_head': 'mean'},
      {'protect_bos': False, 'protect_self': False},
      {'masking_scale': 0.3},
    ]
  ),
  ids=str,
)
def test_equals_the_reference(settings):
  ids = segments(np.random.default_rng(1), 2, 150)
  check_equal(forgetful(0, (2, 150, 4, 8)), segment_ids=ids, **settings)


@pytest.mark.parametrize(
  'shape,packed',
  smoke.first(
    [
      ((1, 4, 150, 150), True),
      ((2, 1, 150, 150), False),
      ((4, 1, 150), True),
      ((2, 4, 150, 1), False),
    ]
  ),
)
def test_equals_the_reference_with_a_bias(shape, packed):
  rng = np.random.default_rng(3)
  bias = jnp.asarray(rng.normal(size=shape), jnp.float32)
  ids = segments(rng, 2, 150) if packed else None
  check_equal(forgetful(1, (2, 150, 4, 8)), bias=bias, segment_ids=ids)


# Every length compiles; the tests above are its smoke.
@pytest.mark.slow
@hypothesis.given(
  seed=st.integers(0, 2**16),
  # Few lengths, since each is compiled.
  length=st.sampled_from([1, 63, 64, 65, 129, 200, 600]),
  share=st.sampled_from([0.0, 0.5, 1.0]),
  size=st.sampled_from([0.0, 0.5, 2.0, 8.0]),
  tau=st.sampled_from([None, 0.5]),
  packed=st.booleans(),
)
@hypothesis.settings(max_examples=8, deadline=None)
def test_equals_the_reference_for_any_keys(
  seed, length, share, size, tau, packed
):
  settings = {'memory_tau': tau}
  if packed:
    rng = np.random.default_rng(seed)
    settings['segment_ids'] = segments(rng, 2, length)
  arrays = forgetful(seed, (2, length, 2, 4), share, size)
  # Logits of some hundreds are rounded to 1e-5, before the exponential.
  check_equal(arrays, tolerance=1e-4 if size > 2 else 3e-5, **settings)


def test_padding_alone_is_zero():
  arrays = forgetful(0, (2, 150, 2, 4))
  ids = jnp.zeros((2, 150), jnp.int32)
  results, gradients = with_gradients(
    'blocked', arrays, forget_below=ROUNDING, segment_ids=ids, memory_tau=2.0
  )
  for x in jax.tree.leaves((results, gradients)):
    np.testing.assert_array_equal(x, 0)


def test_huge_logits():
  # Squares of these norms overflow float32 in part of the products.
  query, key, value = forgetful(2, (1, 150, 2, 4))
  arrays = (1e10 * query, 1e9 * key, value)
  got, _ = with_gradients('blocked', arrays, forget_below=ROUNDING)
  wanted, _ = with_gradients('reference', arrays)
  np.testing.assert_allclose(got[0], wanted[0], atol=1e-5)


def tiles(arrays, block=BLOCK):
  """The Queries, scaled, and the Keys of a row without padding."""
  query, key, value = arrays
  batch, length, heads, size = query.shape

  def in_blocks(x):
    x = x.reshape(batch, length // block, block, *x.shape[2:])
    return x.transpose(1, 0, 3, 4, 2)

  def whole(x):
    return x.swapaxes(1, 2)

  return (
    Queries(in_blocks(query * size**-0.5)),
    Keys(whole(key), whole(value)),
  )


def exact(arrays, ids=None):
  """F [B, N, N] and the weights [B, H, N, N], in float64."""
  query, key, _ = (np.asarray(x, np.float64) for x in arrays)
  logits = np.einsum('bihd,bjhd->bhij', query, key) * query.shape[3] ** -0.5
  with jax.enable_x64(True):
    masking = attention.masking_matrix(
      jnp.asarray(logits[:, 0]), segment_ids=ids
    )
    masking = np.asarray(masking)
  visible = np.asarray(masks.visible(logits.shape[-1], ids))[:, None]
  logits = np.where(visible, logits - masking[:, None], -np.inf)
  with np.errstate(invalid='ignore'):
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
  return masking, np.where(visible, weights, 0)


@hypothesis.given(
  seed=st.integers(0, 2**16),
  share=st.floats(0, 1),
  size=st.floats(0, 10),
  eps=st.sampled_from([0.3, 1e-2, 1e-5, ROUNDING]),
  bos=st.booleans(),
  packed=st.booleans(),
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_dead_keys_weigh_less_than_eps_for_all_later_queries(
  seed, share, size, eps, bos, packed
):
  arrays = forgetful(seed, (2, 48, 3, 4), share, size)
  rng = np.random.default_rng(seed)
  ids = segments(rng, 2, 48) if packed else None
  masking, weights = exact(arrays, ids)
  bound = live_keys.bound(
    *tiles(arrays),
    None if ids is None else masks.segment_starts(48, ids),
    forget_below=eps,
    protect_bos=bos,
  )
  for index in range(1, 48 // BLOCK):
    first = index * BLOCK
    # F at the first query, where it exists: elsewhere the key is not visible.
    alive = bound.alive(index, jnp.asarray(masking[:, first], jnp.float32))
    dead = ~np.asarray(alive)[:, None, None, :first]
    lost = np.sum(weights[:, :, first:, :first] * dead, axis=-1)
    assert np.max(lost) <= eps * (1 + 1e-3)


def one_masked_key(score):
  """Rows whose token 1 is masked by `score` from token 2 on, once."""
  query, key = np.zeros((2, 1, 24, 1, 2))
  key[0, 1, 0, 0] = 1
  query[0, 2, 0, 0] = score * 2**0.5
  return [jnp.asarray(x, jnp.float32) for x in (query, key, query)]


@pytest.mark.parametrize('factor,lives', [(0.999, True), (1.001, False)])
def test_a_key_dies_where_its_masking_passes_the_bound(factor, lives):
  # From block 1 on all queries are zero: U and L are 0, and log(N / eps) is
  # left.
  limit = np.log(24 / ROUNDING)
  arrays = one_masked_key(factor * limit)
  masking, _ = exact(arrays)
  bound = live_keys.bound(
    *tiles(arrays), None, forget_below=ROUNDING, protect_bos=True
  )
  alive = bound.alive(1, jnp.asarray(masking[:, BLOCK], jnp.float32))[0]
  assert bool(alive[1]) == lives
  assert alive[0] and np.all(alive[2:BLOCK]) and not np.any(alive[BLOCK:])
  check_equal(arrays)


def test_a_key_that_memory_still_counts_is_alive():
  arrays = one_masked_key(30.0)
  masking, _ = exact(arrays)
  for floor, lives in ((0.0, False), (29.0, False), (31.0, True)):
    bound = live_keys.bound(
      *tiles(arrays), None, forget_below=ROUNDING, protect_bos=True, floor=floor
    )
    alive = bound.alive(1, jnp.asarray(masking[:, BLOCK], jnp.float32))
    assert bool(alive[0, 1]) == lives


def test_a_limit_that_is_not_a_number_keeps_its_keys():
  query, key, value = forgetful(0, (1, 24, 1, 2))
  arrays = (query.at[:, 20].set(jnp.nan), key, value)
  bound = live_keys.bound(
    *tiles(arrays), None, forget_below=ROUNDING, protect_bos=True
  )
  alive = bound.alive(1, jnp.full((1, 24), 1e9))
  np.testing.assert_array_equal(alive[0, :BLOCK], True)


@pytest.mark.parametrize('batch', [1, 3])
def test_listed_keys_are_in_order_and_padded(batch):
  rng = np.random.default_rng(batch)
  alive = rng.random((batch, 24)) < 0.4
  most = max(np.sum(alive, axis=1))
  for width in (most, most + 5):
    listed = live_keys.listed(jnp.asarray(alive), int(width))
    for row, ids in zip(alive, np.asarray(listed), strict=True):
      (wanted,) = np.nonzero(row)
      rest = (0, width - len(wanted))
      np.testing.assert_array_equal(
        ids, np.pad(wanted, rest, constant_values=24)
      )


def test_a_large_eps_drops_more_than_rounding():
  arrays = forgetful(4, (1, 300, 2, 8))
  exact_, _ = with_gradients('blocked', arrays, forget_below=0)
  for eps in (1e-1, 1e-3):
    rough, _ = with_gradients('blocked', arrays, forget_below=eps)
    lost = np.max(np.abs(rough[0] - exact_[0]))
    # Each output is a mean of values: it moves by eps times their range.
    assert 1e-7 < lost <= eps * 2 * float(jnp.max(jnp.abs(arrays[2])))


def test_nothing_is_dropped_without_the_relu():
  arrays = forgetful(0, (2, 150, 2, 4))
  kept = with_gradients('blocked', arrays, relu=False, forget_below=0)
  same = with_gradients('blocked', arrays, relu=False, forget_below=0.5)
  jax.tree.map(np.testing.assert_array_equal, same, kept)


def test_second_derivatives_name_the_setting():
  query, key, value = forgetful(0, (1, 150, 2, 4))

  def slope(query, forget_below):
    attend = functools.partial(
      attention.selective_attention,
      implementation='blocked',
      forget_below=forget_below,
    )
    grad = jax.grad(lambda q: jnp.sum(jnp.sin(attend(q, key, value))))
    return jnp.sum(grad(query) * key)

  with pytest.raises(UserError, match='first derivatives .*forget_below = 0'):
    jax.grad(slope)(query, ROUNDING)
  assert np.all(np.isfinite(jax.grad(slope)(query, 0)))


@pytest.mark.parametrize('value', [-1e-3, 1.0, float('nan'), '0', True])
def test_a_wrong_forget_below_is_one_line(value):
  arrays = forgetful(0, (1, 8, 2, 4))
  with pytest.raises(UserError, match='forget_below = .*: expected a number'):
    attention.selective_attention(*arrays, forget_below=value)


def test_live_keys_of_each_query_are_returned():
  length, groups = 200, 2
  arrays = forgetful(0, (2, length, 4, 8))
  ids = segments(np.random.default_rng(1), 2, length)
  settings = {
    'implementation': 'blocked',
    'segment_ids': ids,
    'selection_groups': groups,
    'return_live_keys': True,
  }
  starts = np.asarray(masks.segment_starts(length, ids))
  visible = np.where(ids == 0, 0, np.arange(length) - starts + 1)
  _, all_keys = attention.selective_attention(
    *arrays, forget_below=0, **settings
  )
  np.testing.assert_array_equal(all_keys, visible)
  _, memory, live = attention.selective_attention(
    *arrays, forget_below=ROUNDING, memory_tau=2.0, **settings
  )
  assert memory.shape == live.shape == (2, length)
  own = np.minimum(visible, np.arange(length) % 64 + 1)
  assert np.all((own <= live) & (live <= visible))
  # Most keys of the first group die; those of the second mask at random.
  assert 0.2 < np.sum(live) / np.sum(visible) < 0.9


@pytest.mark.parametrize(
  'settings',
  [
    {'implementation': 'reference'},
    {'return_masking': True},
  ],
)
def test_live_keys_that_nothing_can_count_are_one_line(settings):
  arrays = forgetful(0, (1, 8, 2, 4))
  with pytest.raises(UserError, match='return_live_keys asks'):
    attention.selective_attention(*arrays, return_live_keys=True, **settings)


def test_by_default_nothing_is_dropped_and_none_is_the_rounding():
  arrays = forgetful(0, (1, 200, 2, 4))

  def attend(**settings):
    return attention.selective_attention(
      *arrays, implementation='blocked', return_live_keys=True, **settings
    )

  _, live = attend()
  np.testing.assert_array_equal(live[0], np.arange(1, 201))
  jax.tree.map(
    np.testing.assert_array_equal,
    attend(forget_below=None),
    attend(forget_below=ROUNDING),
  )
  _, live = attend(forget_below=None)
  assert np.sum(live) < 200 * 100
