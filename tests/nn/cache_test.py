"""Decoding with a cache is the parallel form, token by token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention
from tests.support import cached_models
from tests.support.cached_models import BATCH, LENGTH, TOKENS

FUNCTIONS = {
  'causal': attention.causal_attention,
  'selective': attention.selective_attention,
  'settings': functools.partial(
    attention.selective_attention,
    selection_head='per_head',
    selection_bias=False,
  ),
}
every_model = pytest.mark.parametrize(
  ('kind', 'function'), [(k, f) for k in ('t5', 'decoder') for f in FUNCTIONS]
)


def build(kind, function):
  return cached_models.build(kind, FUNCTIONS[function])


# Each function of a model is compiled once for all tests.
@functools.cache
def empty_cache(model):
  ones = jnp.ones((BATCH, LENGTH), int)
  return jax.jit(lambda: model.apply(ones, decode=True)[1]['cache'])()


@functools.cache
def parallel(model):
  """The logits of TOKENS, f32[B, N, V]."""
  return jax.jit(lambda: model.apply(jnp.asarray(TOKENS), mutable=False))()


@functools.cache
def stepper(model):
  """Returns step(cache, i32[B]) -> (f32[B, V], cache)."""

  @jax.jit
  def step(cache, tokens):
    logits, changed = model.apply(
      tokens[:, None], cache=cache, decode=True, max_decode_length=LENGTH
    )
    return logits[:, 0], changed['cache']

  return step


@functools.cache
def prefiller(model):
  """Returns prefill(tokens, lengths) -> cache."""

  @jax.jit
  def prefill(tokens, lengths):
    _, changed = model.apply(
      tokens, cache=empty_cache(model), prefill=True, prefill_lengths=lengths
    )
    return changed['cache']

  return prefill


def decode(model):
  """Feeds TOKENS one by one; f32[B, N, V]."""
  cache, outs = empty_cache(model), []
  step = stepper(model)
  for tokens in TOKENS.T:
    logits, cache = step(cache, jnp.asarray(tokens))
    outs.append(logits)
  return np.stack(outs, axis=1)


@pytest.mark.slow  # The same in float64 is below.
@every_model
def test_steps_are_the_parallel_form(kind, function):
  model = build(kind, function)
  np.testing.assert_allclose(decode(model), parallel(model), atol=1e-5)


@pytest.mark.parametrize('kind', ['t5', 'decoder'])
@pytest.mark.parametrize('function', ['causal', 'selective'])
def test_steps_are_the_parallel_form_in_float64(kind, function):
  with jax.enable_x64(True):
    model = cached_models.build(kind, FUNCTIONS[function], 'float64')
    np.testing.assert_allclose(decode(model), parallel(model), atol=1e-6)


@pytest.mark.parametrize('kind', ['t5', 'decoder'])
def test_selection_is_on_while_decoding(kind):
  baseline, *others = (decode(build(kind, name)) for name in FUNCTIONS)
  # Nothing is masked before the third token: the first cannot be.
  for selective in others:
    np.testing.assert_allclose(selective[:, :2], baseline[:, :2], atol=1e-5)
    assert np.max(np.abs(selective - baseline)[:, 3:]) > 1e-2
  assert np.max(np.abs(others[0] - others[1])) > 1e-2


def prefill(model, lengths):
  """Returns the cache of prompts, what follows them replaced by nonsense."""
  prompt = np.where(np.arange(LENGTH) < lengths[:, None], TOKENS, 3)
  return prefiller(model)(jnp.asarray(prompt), jnp.asarray(lengths))


def decode_from(model, cache, lengths):
  """Feeds the tokens after each prompt; rows are over at different steps."""
  outs = np.full((BATCH, LENGTH, cached_models.VOCAB), np.nan)
  step, rows = stepper(model), np.arange(BATCH)
  for i in range(LENGTH - min(lengths)):
    position = np.minimum(lengths + i, LENGTH - 1)
    logits, cache = step(cache, jnp.asarray(TOKENS[rows, position]))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(cache))
    assert np.all(np.isfinite(logits))
    runs = lengths + i < LENGTH
    outs[rows[runs], position[runs]] = logits[runs]
  return outs


@every_model
@pytest.mark.parametrize('lengths', [[1, 4, 9], [0, 10, 6]])
def test_uneven_prompts_then_steps_are_the_parallel_form(
  kind, function, lengths
):
  model, lengths = build(kind, function), np.array(lengths)
  outs = decode_from(model, prefill(model, lengths), lengths)
  after = np.arange(LENGTH) >= lengths[:, None]
  np.testing.assert_allclose(outs[after], parallel(model)[after], atol=1e-5)


def test_prompts_are_counted_by_their_targets_where_no_length_is_given():
  model, lengths = build('decoder', 'selective'), np.array([2, 5, 1])
  targets = jnp.asarray(np.arange(LENGTH) < lengths[:, None])
  cache = prefill(model, lengths)
  _, changed = model.apply(
    jnp.asarray(TOKENS), cache=cache, prefill=True, targets=targets
  )
  np.testing.assert_array_equal(changed['cache']['cached_position'], lengths)


def test_a_bidirectional_prompt_is_the_parallel_form():
  model, lengths = build('decoder', 'causal'), np.array([3, 6, 1])
  # As T5X has it: the token after the prompt is of the prefix too.
  prefix = jnp.asarray(np.arange(LENGTH) <= lengths[:, None])
  wanted = model.apply(
    jnp.asarray(TOKENS), mutable=False, decoder_causal_attention=prefix
  )
  # What is prefilled sees the whole prefix, its last token included.
  _, changed = model.apply(
    jnp.asarray(TOKENS),
    cache=empty_cache(model),
    prefill=True,
    prefill_lengths=jnp.asarray(lengths),
    decoder_causal_attention=prefix,
  )
  outs = decode_from(model, changed['cache'], lengths)
  after = np.arange(LENGTH) >= lengths[:, None]
  np.testing.assert_allclose(outs[after], wanted[after], atol=1e-5)
  assert not np.allclose(outs[after], parallel(model)[after], atol=1e-3)


@every_model
def test_rows_of_a_cache_can_be_copied_and_reordered(kind, function):
  """What T5X's beam search does with every leaf but those it names."""
  model = build(kind, function)
  step = stepper(model)
  cache = empty_cache(model)
  for tokens in TOKENS.T[:5]:
    _, cache = step(cache, jnp.asarray(tokens))
  excepted = {'cache_index', 'cached_bias', 'position_embedder_index'}
  for path, leaf in jax.tree_util.tree_leaves_with_path(cache):
    assert leaf.shape[0] == BATCH and path[-1].key not in excepted
  # Rows of T5 belong to their inputs, so only tokens are exchanged: every row
  # of the cache is row 1's, and goes on as row 1 does.
  copied = jax.tree.map(lambda leaf: leaf[jnp.array([1, 1, 1])], cache)
  token = jnp.asarray(TOKENS[:, 5])
  own, after = step(cache, token)
  other, after_copy = step(copied, jnp.full_like(token, token[1]))
  np.testing.assert_allclose(own[1], other[1], atol=1e-6)
  if kind == 'decoder':
    np.testing.assert_allclose(other, np.tile(own[1], (3, 1)), atol=1e-6)
  shapes = jax.tree.map(jnp.shape, cache)
  assert jax.tree.map(jnp.shape, after) == shapes
  assert jax.tree.map(jnp.shape, after_copy) == shapes


def test_only_selection_keeps_its_masking():
  def leaves(function):
    return {
      path[-1].key: leaf
      for path, leaf in jax.tree_util.tree_leaves_with_path(
        empty_cache(build('decoder', function))
      )
    }

  kept = {'cached_key', 'cached_value', 'cached_position'}
  assert set(leaves('causal')) == kept
  selective = leaves('selective')
  assert set(selective) == kept | {'cached_masking'}
  assert selective['cached_masking'].shape == (BATCH, LENGTH)
  assert leaves('settings')['cached_masking'].shape == (BATCH, 2, LENGTH)
  assert all(not np.any(leaf) for leaf in selective.values())


@pytest.mark.parametrize('kind', ['t5', 'decoder'])
def test_what_does_not_fit_is_named(kind):
  model = build(kind, 'selective')
  cache, tokens = empty_cache(model), jnp.asarray(TOKENS)
  with pytest.raises(ValueError, match='prefill first'):
    model.apply(tokens, cache=cache, decode=True, prefill=True)
  with pytest.raises(ValueError, match=r'\[3, 1\], got \[3, 2\]'):
    model.apply(tokens[:, :2], cache=cache, decode=True)
  with pytest.raises(ValueError, match='prompts of 9 tokens and a cache of 10'):
    model.apply(tokens[:, :9], cache=cache, prefill=True)


def test_packed_rows_are_not_decoded():
  model = build('t5', 'selective')
  with pytest.raises(ValueError, match='encoder_segment_ids'):
    model.apply(
      jnp.asarray(TOKENS),
      decode=True,
      encoder_segment_ids=jnp.ones_like(cached_models.ENCODER_TOKENS),
    )
