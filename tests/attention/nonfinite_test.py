"""What a token that is not finite reaches: what sees it, and nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention
from tests.attention import properties
from tests.attention.segments_test import EACH, FUNCTIONS

LENGTH = properties.LENGTH
PACKED = properties.PACKED
NAMES = ('query', 'key', 'value')


@functools.cache
def compiled(group, name):
  """Outputs, and gradients of a function of some of them."""
  function = FUNCTIONS[group][name]

  def loss(inputs, ids, counted):
    out = function(*inputs, segment_ids=ids)
    kept = jnp.where(counted[..., None, None], out, 0)
    return jnp.sum(jnp.sin(3 * kept)), out

  return properties.compiled(jax.grad(loss, has_aux=True))


def spoilt(inputs, name, row, token, number=jnp.nan):
  """Inputs with a number in one head and place of one token."""
  changed = dict(zip(NAMES, inputs, strict=True))
  changed[name] = changed[name].at[row, token, 1, 2].set(number)
  return list(changed.values())


# A token in the middle of a segment that others follow, in its own segment and
# in another.
ROW, TOKEN = 0, 2
AFTER = np.zeros(PACKED.shape, bool)
AFTER[ROW, TOKEN:4] = True


@pytest.mark.parametrize('number', [np.nan, np.inf])
@pytest.mark.parametrize('spoils', NAMES)
@pytest.mark.parametrize(('group', 'name'), EACH)
def test_a_token_reaches_what_sees_it_alone(group, name, spoils, number):
  if (group, spoils) == ('tempered', 'query'):
    pytest.skip('there the query is the gradient of its own temperature')
  inputs, run = properties.arrays(), compiled(group, name)
  live = PACKED != 0
  counted = ~AFTER
  clean_grads, clean = run(inputs, PACKED, counted)
  grads, out = run(spoilt(inputs, spoils, ROW, TOKEN, number), PACKED, counted)
  np.testing.assert_array_equal(out[counted], clean[counted])
  # It does not vanish either.
  reached = np.any(~np.isfinite(out), axis=(2, 3))
  own = TOKEN
  if group == 'stick-breaking' and spoils != 'query':
    own += 1  # A token does not see itself.
  assert reached[ROW, own]
  if spoils != 'query':
    assert np.all(reached[ROW, own:4])
  for one, other in zip(grads, clean_grads, strict=True):
    assert np.all(np.isfinite(one))
    np.testing.assert_allclose(
      one[live & counted], other[live & counted], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(one[ROW, TOKEN, 1], 0, atol=1e-6)


@pytest.mark.parametrize('name', FUNCTIONS['selective'])
def test_a_selecting_head_reaches_every_head_of_later_tokens(name):
  # The kernels' gradients of this are compiled above.
  run = compiled('selective', name)
  for spoils in ('query', 'key'):
    inputs = properties.arrays()
    inputs = dict(zip(NAMES, inputs, strict=True))
    inputs[spoils] = inputs[spoils].at[ROW, TOKEN, 0, 1].set(jnp.nan)
    _, out = run(list(inputs.values()), PACKED, ~AFTER)
    finite = np.all(np.isfinite(out), axis=3)
    later = np.zeros_like(AFTER)
    later[ROW, TOKEN + 1 : 4] = True
    assert not np.any(finite[later])
    np.testing.assert_array_equal(finite[ROW, TOKEN], [False, True])
    assert np.all(finite[~AFTER])


@pytest.mark.parametrize('name', ['reference', 'blocked'])
def test_m_and_f_are_nan_from_the_next_token_on(name):
  inputs = properties.arrays()
  inputs[0] = inputs[0].at[ROW, TOKEN, 0, 1].set(jnp.nan)
  settings = {'return_masking': True} if name == 'reference' else {}
  out, seen, *masking = attention.selective_attention(
    *inputs, segment_ids=PACKED, memory_tau=1.0, implementation=name, **settings
  )
  wanted = np.zeros_like(AFTER)
  wanted[ROW, TOKEN + 1 : 4] = True
  np.testing.assert_array_equal(np.isnan(seen), wanted)
  for one in masking:
    np.testing.assert_array_equal(np.any(np.isnan(one), axis=2), wanted)
  assert np.all(np.isfinite(out[~AFTER]))


@pytest.mark.parametrize('implementation', ['reference', 'blocked'])
def test_a_gate_that_is_nan_reaches_later_tokens_alone(implementation):
  inputs = properties.arrays()
  gates = -jnp.abs(inputs[0][..., 0])
  counted = ~AFTER

  def loss(gates):
    out = attention.forgetting_attention(
      *inputs,
      log_forget=gates,
      segment_ids=PACKED,
      implementation=implementation,
    )
    kept = jnp.where(counted[..., None, None], out, 0)
    return jnp.sum(jnp.sin(3 * kept)), out

  run = properties.compiled(jax.grad(loss, has_aux=True))
  clean_grad, clean = run(gates)
  grad, out = run(gates.at[ROW, TOKEN].set(jnp.nan))
  # Sums run through segments, so that those of later ones are rounded anew.
  np.testing.assert_allclose(out[counted], clean[counted], rtol=1e-5, atol=1e-6)
  assert np.all(np.isnan(out[AFTER]))
  np.testing.assert_allclose(grad, clean_grad, rtol=1e-5, atol=1e-6)


def test_attention_to_a_whole_text_keeps_texts_apart():
  query, key, value = properties.arrays()
  ids = dict(query_ids=PACKED, key_ids=PACKED)
  own = PACKED == PACKED[ROW, TOKEN]
  own[1] = False

  def loss(inputs):
    out = attention.full_attention(*inputs, **ids)
    return jnp.sum(jnp.where(own[..., None, None], 0, out)), out

  run = properties.compiled(jax.grad(loss, has_aux=True))
  clean_grads, clean = run([query, key, value])
  for spoils in NAMES:
    grads, out = run(spoilt([query, key, value], spoils, ROW, TOKEN))
    np.testing.assert_array_equal(out[~own], clean[~own])
    reached = np.isnan(out[:, :, 1]).any(-1)
    wanted = own
    if spoils == 'query':
      wanted = np.zeros_like(own)
      wanted[ROW, TOKEN] = True
    np.testing.assert_array_equal(reached, wanted)
    for one, other in zip(grads, clean_grads, strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('implementation', ['reference', 'blocked'])
def test_a_window_passes_what_is_not_finite(implementation):
  inputs = spoilt(properties.arrays(), 'value', ROW, 0)
  out = attention.window_attention(
    *inputs, window=3, implementation=implementation
  )
  reached = np.any(np.isnan(out), axis=(2, 3))
  np.testing.assert_array_equal(reached[ROW], np.arange(LENGTH) < 3)
  out = attention.window_attention(
    *inputs, window=3, keep_first=True, implementation=implementation
  )
  assert np.all(np.any(np.isnan(out), axis=(2, 3))[ROW])


def test_a_prefix_sees_its_later_tokens():
  inputs = spoilt(properties.arrays(), 'value', ROW, 3)
  prefix = np.zeros(PACKED.shape, np.int32)
  prefix[:, :4] = 1
  out = attention.causal_attention(*inputs, prefix=prefix)
  assert np.all(np.any(np.isnan(out), axis=(2, 3))[ROW])
  assert np.all(np.isfinite(out[1]))


def test_a_loss_of_what_is_not_finite_has_no_finite_gradient():
  # Nothing may look right that is not.
  inputs = spoilt(properties.arrays(), 'value', ROW, TOKEN)
  grads, _ = compiled('selective', 'blocked')(inputs, PACKED, PACKED != 0)
  assert not np.all(np.isfinite(grads[0]))


def test_it_can_be_debugged():
  # No NaN comes up where there is none.
  with jax.debug_nans(True):
    for name in ('reference', 'blocked'):
      out = attention.selective_attention(
        *properties.arrays(), segment_ids=PACKED, implementation=name
      )
      assert np.all(np.isfinite(out))
