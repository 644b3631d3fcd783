"""Decoding with an evicting cache is the pruned parallel form, step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import extend

from selective_t5x import attention, pruning
from tests.pruning import matrix
from tests.pruning.matrix import POLICIES
from tests.support import cached_models, smoke
from tests.support.cached_models import BATCH, LENGTH, TOKENS

# Prompts of no token, of fewer than the budgets, and of more.
LENGTHS = np.array([0, 4, 8])
# Layers differ; the smallest there can be, and one that is left at times.
BUDGETS = (2, 5)
# What is compiled runs a few times only.
compiled = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)
# T5's biases matter to F, and to policies that read logits: by F, by weights
# so far, by both in a bound, and for each head.
WITH_BIASES = ('selective', 'h2o', 'certified', 'adakv')
NAMES = (*matrix.NAMES, *matrix.PER_HEAD)
MODELS = [
  *(('decoder', name) for name in NAMES),
  *(('t5', name) for name in WITH_BIASES),
  ('t5_decoder_only', 'tova'),
  *smoke.others(('t5', name) for name in NAMES if name not in WITH_BIASES),
]


def build(kind, name, budgets=BUDGETS, dtype='float64'):
  if name in matrix.PER_HEAD:
    function, policy = attention.causal_attention, matrix.PER_HEAD[name]
  else:
    function, policy = attention.selective_attention, POLICIES[name][0]
  model = cached_models.build(kind, function, dtype)
  return cached_models.pruned(model, pruning.Pruning(policy, budgets))


# Compiling takes most of a test's time: each function is compiled once.
@functools.cache
def empty_cache(model):
  ones = jnp.ones((BATCH, LENGTH), int)
  shapes = jax.eval_shape(lambda: model.apply(ones, decode=True)[1]['cache'])
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


@functools.cache
def parallel(model):
  """Returns f(i32[L]) -> f[B, N, V], the logits of TOKENS."""
  return compiled(
    lambda budgets: model.apply(
      jnp.asarray(TOKENS), mutable=False, budgets=budgets
    )
  )


@functools.cache
def stepper(model):
  """Returns step(cache, i32[B]) -> (f[B, V], cache)."""

  @compiled
  def step(cache, tokens):
    logits, changed = model.apply(tokens[:, None], cache=cache, decode=True)
    return logits[:, 0], changed['cache']

  return step


@functools.cache
def prefill(model):
  """Returns the cache of prompts of LENGTHS; what follows is nonsense."""
  prompt = np.where(np.arange(LENGTH) < LENGTHS[:, None], TOKENS, 3)

  @compiled
  def fill(cache):
    _, changed = model.apply(
      jnp.asarray(prompt),
      cache=cache,
      prefill=True,
      prefill_lengths=jnp.asarray(LENGTHS),
    )
    return changed['cache']

  return fill(empty_cache(model))


def decode_from(model, cache, lengths):
  """Feeds the tokens after each prompt; rows are over at different steps."""
  outs = np.full((BATCH, LENGTH, cached_models.VOCAB), np.nan)
  rows = np.arange(BATCH)
  for i in range(LENGTH - min(lengths)):
    position = np.minimum(lengths + i, LENGTH - 1)
    tokens = jnp.asarray(TOKENS[rows, position])
    logits, cache = stepper(model)(cache, tokens)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(cache))
    runs = lengths + i < LENGTH
    outs[rows[runs], position[runs]] = logits[runs]
  return outs


@pytest.mark.parametrize(('kind', 'name'), MODELS)
def test_prompts_and_steps_are_the_parallel_form(kind, name, float64):
  model = build(kind, name)
  wanted = parallel(model)(jnp.array(BUDGETS))
  outs = decode_from(model, prefill(model), LENGTHS)
  after = np.arange(LENGTH) >= LENGTHS[:, None]
  np.testing.assert_allclose(outs[after], wanted[after], atol=1e-6)
  # Something was pruned.
  whole = parallel(model)(jnp.array([LENGTH, LENGTH]))
  assert np.max(np.abs(whole - wanted)) > 1e-2


def test_steps_alone_are_the_parallel_form_in_float32():
  model = build('decoder', 'selective', dtype='float32')
  wanted = parallel(model)(jnp.array(BUDGETS))
  outs = decode_from(model, empty_cache(model), np.zeros(BATCH, int))
  np.testing.assert_allclose(outs, wanted, atol=1e-5)


@pytest.mark.parametrize('name', ['selective', 'tova'])
def test_all_heads_share_the_keys_that_are_kept(name, float64):
  per_head = functools.partial(
    attention.selective_attention, selection_head='per_head'
  )
  model = cached_models.pruned(
    cached_models.build('decoder', per_head, 'float64'),
    pruning.Pruning(POLICIES[name][0], BUDGETS),
  )
  outs = decode_from(model, prefill(model), LENGTHS)
  after = np.arange(LENGTH) >= LENGTHS[:, None]
  wanted = parallel(model)(jnp.array(BUDGETS))
  np.testing.assert_allclose(outs[after], wanted[after], atol=1e-6)


@pytest.mark.parametrize('name', ['selective', 'h2o'])
@pytest.mark.parametrize('kind', ['decoder', 't5'])
def test_a_budget_of_the_length_prunes_nothing(kind, name, float64):
  full = cached_models.build(kind, attention.selective_attention, 'float64')
  whole = compiled(lambda: full.apply(jnp.asarray(TOKENS), mutable=False))()
  got = parallel(build(kind, name))(jnp.array([LENGTH, 99]))
  np.testing.assert_allclose(got, whole, atol=1e-6)


def test_a_cache_of_the_length_evicts_nothing(float64):
  model = build('decoder', 'selective', budgets=10**6)
  full = cached_models.build(
    'decoder', attention.selective_attention, 'float64'
  )
  whole = compiled(lambda: full.apply(jnp.asarray(TOKENS), mutable=False))()
  outs = decode_from(model, empty_cache(model), np.zeros(BATCH, int))
  np.testing.assert_allclose(outs, whole, atol=1e-6)
  assert size(empty_cache(model), 'cached_key') == size(
    empty_cache(full), 'cached_key'
  )


def leaves(cache):
  """{(path, ...): array}, the module names that all share left out."""
  return {
    tuple(key.key for key in path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(cache)
  }


def size(cache, name):
  """Bytes of the leaves of one name."""
  return sum(
    leaf.nbytes for path, leaf in leaves(cache).items() if path[-1] == name
  )


@pytest.mark.parametrize('kind', ['decoder', 't5'])
def test_the_cache_is_as_large_as_the_budgets(kind):
  per_key = 2 * 8 * 4  # Heads, their size, float32.
  for name, scored in [('selective', False), ('h2o', True)]:
    cache = empty_cache(build(kind, name, dtype='float32'))
    keys = BATCH * sum(BUDGETS)
    assert size(cache, 'cached_key') == keys * per_key
    assert size(cache, 'cached_value') == keys * per_key
    assert size(cache, 'cached_key_position') == keys * 4
    assert size(cache, 'cached_masking') == keys * 4
    assert size(cache, 'cached_score') == keys * 4 * scored
    whole = keys * (2 * per_key + 4 * (2 + scored)) + BATCH * 4
    assert sum(leaf.nbytes for leaf in leaves(cache).values()) == whole
    for path, leaf in leaves(cache).items():
      if path[-1] != 'cached_position':
        budget = BUDGETS['layers_1' in path]
        assert leaf.shape[:2] == (BATCH, budget)


def test_a_new_cache_is_empty():
  model = build('decoder', 'h2o', dtype='float32')
  ones = jnp.ones((BATCH, LENGTH), int)
  cache = compiled(lambda: model.apply(ones, decode=True)[1]['cache'])()
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(cache))


def shapes_within(jaxpr):
  """Yields the shapes of all arrays that a program makes."""
  for equation in jaxpr.eqns:
    for out in equation.outvars:
      yield out.aval.shape
    for inner in extend.core.jaxprs_in_params(equation.params):
      yield from shapes_within(inner)


@pytest.mark.parametrize(
  ('kind', 'name'),
  [
    *(('decoder', name) for name in NAMES),
    *smoke.others(('t5', name) for name in NAMES),
    ('t5_decoder_only', 'tova'),
  ],
)
def test_no_array_of_a_step_is_as_long_as_a_row(kind, name):
  # A pool has two heads' entries: 10 would be the length of a row.
  budgets, expected = BUDGETS, (BATCH, 5, 2, 8)
  if name in matrix.PER_HEAD:
    budgets, expected = (2, 3), (BATCH, 6, 8)
  model = build(kind, name, budgets, dtype='float32')
  jaxpr = jax.make_jaxpr(stepper(model).__wrapped__)(
    empty_cache(model), jnp.zeros(BATCH, int)
  )
  shapes = set(shapes_within(jaxpr.jaxpr))
  assert expected in shapes
  assert not any(LENGTH in shape for shape in shapes)


@pytest.mark.parametrize(
  'name', ['selective', 'h2o', 'snapkv', 'expectedattention', 'adakv']
)
def test_rows_of_a_cache_can_be_copied_and_reordered(name):
  """What T5X's beam search does with every leaf but those it names."""
  from t5x import decoding

  model = build('decoder', name, dtype='float32')
  cache = empty_cache(model)
  for tokens in TOKENS.T[:7]:
    _, cache = stepper(model)(cache, jnp.asarray(tokens))
  picked = jnp.array([[1, 1, 0]])
  beams = jax.tree.map(lambda x: x[None], cache)
  gathered = decoding.cache_gather_beams(beams, picked, 1, 3, 3)
  gathered = jax.tree.map(lambda x: x[0], gathered)
  assert jax.tree.map(jnp.result_type, gathered) == jax.tree.map(
    jnp.result_type, cache
  )
  tokens = jnp.asarray(TOKENS[:, 7])
  own, _ = stepper(model)(cache, tokens)
  moved, _ = stepper(model)(gathered, tokens[picked[0]])
  np.testing.assert_allclose(moved, own[picked[0]], atol=1e-6)


def test_slots_that_are_not_filled_never_matter(float64):
  model = build('decoder', 'h2o')
  cache = prefill(model)
  # Row 0 holds no key, row 1 four of the five of layer 1.
  filled = np.minimum(np.arange(5) < LENGTHS[:, None], True)

  def spoil(path, leaf):
    if path[-1].key in ('cached_position', 'cached_key_position'):
      return leaf
    held = filled[:, : leaf.shape[1]]
    held = held.reshape(held.shape + (1,) * (leaf.ndim - 2))
    return jnp.where(held, leaf, jnp.nan)

  spoilt = jax.tree_util.tree_map_with_path(spoil, cache)
  tokens = jnp.asarray(TOKENS[np.arange(BATCH), LENGTHS])
  wanted, _ = stepper(model)(cache, tokens)
  got, _ = stepper(model)(spoilt, tokens)
  np.testing.assert_array_equal(got, wanted)


def test_what_does_not_fit_is_named():
  model = build('decoder', 'window', dtype='float32')
  tokens, budgets = jnp.asarray(TOKENS), jnp.array(BUDGETS)

  def refused(message, model, tokens, **kwargs):
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(lambda: model.apply(tokens, **kwargs))

  refused(
    'prompts of 4 tokens and a cache of 5',
    model,
    tokens[:, :4],
    cache=empty_cache(model),
    prefill=True,
  )
  refused('are for whole rows', model, tokens, decode=True, budgets=budgets)
  refused(
    r'must be \[L\] = \[2\], got \[3\]',
    model,
    tokens,
    budgets=jnp.array([2, 3, 4]),
  )
  full = cached_models.build('decoder', attention.causal_attention)
  refused('pruning of its config is None', full, tokens, budgets=budgets)
