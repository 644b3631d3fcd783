"""Blocks of queries are whole rows, without arrays of N x N."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention, pruning
from selective_t5x.attention.distance_bias import DistanceBias
from selective_t5x.pruning import query_blocks
from tests.pruning import decoding_test, matrix
from tests.pruning.keep_test import BATCH, HEADS, LENGTH, SIZE, arrays, bias
from tests.pruning.matrix import POLICIES, SEGMENTS
from tests.support import cached_models, smoke

pytestmark = pytest.mark.usefixtures('float64')
LAST = np.array([LENGTH - 1, 0, LENGTH // 2, 3])[:BATCH]
ROW = np.ones((BATCH, LENGTH), int)


def attend(function, policy, heads, size, **arguments):
  return query_blocks.pruned_rows(
    function, policy, *heads, size=size, layer=3, **arguments
  )


def same(one, other):
  """All that is returned agrees; nothing is missing."""
  assert jax.tree.structure(one) == jax.tree.structure(other)
  for got, wanted in zip(
    jax.tree.leaves(one), jax.tree.leaves(other), strict=True
  ):
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


def policy_of(name):
  if name in matrix.PER_HEAD:
    return attention.causal_attention, matrix.PER_HEAD[name]
  return attention.selective_attention, POLICIES[name][0]


@pytest.mark.parametrize('name', (*matrix.NAMES, *matrix.PER_HEAD))
@pytest.mark.parametrize('packed', [False, True])
def test_every_policy_by_blocks_is_whole_rows(name, packed):
  function, policy = policy_of(name)
  heads = [jnp.nan_to_num(x) for x in arrays()]
  arguments = dict(budget=4, bias=jnp.asarray(bias()))
  if packed:
    arguments['segment_ids'] = jnp.asarray(SEGMENTS)
  else:
    arguments['last'] = jnp.asarray(LAST)
  if function is attention.selective_attention:
    arguments['memory_tau'] = 1.0
  whole, blocks = (
    jax.jit(
      functools.partial(attend, function, policy, size=size, **arguments)
    )(heads)
    for size in (LENGTH, 5)
  )
  if packed and whole.masking is not None:
    whole, blocks = (x._replace(masking=None) for x in (whole, blocks))
  same(blocks, whole)


def by_distance(heads=HEADS):
  """Biases of six distances; all far ones share one."""
  values = 3 * np.random.default_rng(3).normal(size=(heads, 6))
  return DistanceBias(jnp.asarray(values))


@pytest.mark.parametrize(
  'name',
  smoke.first(
    ['certified', *matrix.PER_HEAD, *sorted({*matrix.NAMES} - {'certified'})], 2
  ),
)
def test_biases_by_distance_are_the_array_for_every_policy(name):
  function, policy = policy_of(name)
  heads = [jnp.nan_to_num(x) for x in arrays()]
  distances = by_distance()
  blocks, whole, array = (
    jax.jit(
      functools.partial(
        *(attend, function, policy),
        size=size,
        budget=4,
        bias=bias,
        # By default the limit of a DistanceBias is that of all distances, of
        # an array that of those in the row.
        bias_limit=limit if policy.certifies else None,
        last=jnp.asarray(LAST),
      )
    )(heads)
    for size, bias, limit in (
      (5, distances, None),
      (LENGTH, distances, None),
      (5, distances.matrix(LENGTH, LENGTH), distances.largest()),
    )
  )
  same(blocks, whole)
  same(blocks, array)


@pytest.mark.parametrize('heads', smoke.first([HEADS, 1]))
def test_gradients_of_biases_by_distance_are_those_of_whole_rows(heads):
  queries = [jnp.nan_to_num(x) for x in arrays()]

  def loss(values, size):
    out = attend(
      *(attention.selective_attention, pruning.Selective(), queries, size),
      budget=4,
      bias=DistanceBias(values),
      segment_ids=jnp.asarray(SEGMENTS),
    ).out
    return jnp.sum(jnp.sin(out))

  blocks, whole = (
    jax.jit(jax.grad(loss), static_argnums=1)(by_distance(heads).values, size)
    for size in (5, LENGTH)
  )
  assert np.any(whole)
  same(blocks, whole)


@pytest.mark.parametrize(
  'settings',
  [
    {'selection_head': 'per_head'},
    {'selection_head': 'mean'},
    {'selection_groups': 2},
    {'selection_bias': False, 'relu': False},
    {'protect_bos': False, 'protect_self': False},
    {'masking_scale': 0.5},
  ],
  ids=str,
)
def test_every_selection_by_blocks_is_whole_rows(settings):
  function = functools.partial(attention.selective_attention, **settings)
  heads = [jnp.nan_to_num(x) for x in arrays(1)]
  arguments = dict(
    budget=4, bias=jnp.asarray(bias()), last=jnp.asarray(LAST), memory_tau=2.0
  )
  same(
    attend(function, pruning.Selective(), heads, 5, **arguments),
    attend(function, pruning.Selective(), heads, LENGTH, **arguments),
  )


def test_projections_select_by_blocks_too():
  heads = [jnp.nan_to_num(x) for x in arrays(1)]
  rng = np.random.default_rng(2)
  own = jnp.asarray(rng.normal(size=(2, BATCH, LENGTH, 2, SIZE)))
  arguments = dict(
    budget=4,
    last=jnp.asarray(LAST),
    selection_query=own[0],
    selection_key=own[1],
  )
  function, policy = attention.selective_attention, pruning.Selective()
  same(
    attend(function, policy, heads, 5, **arguments),
    attend(function, policy, heads, LENGTH, **arguments),
  )


@pytest.mark.parametrize('name', ['selective', 'h2o'])
def test_gradients_are_those_of_whole_rows(name):
  heads = [jnp.nan_to_num(x) for x in arrays()]

  def loss(heads, size):
    out = attend(
      attention.selective_attention,
      POLICIES[name][0],
      heads,
      size,
      budget=4,
      segment_ids=jnp.asarray(SEGMENTS),
    ).out
    return jnp.sum(jnp.sin(out))

  blocks, whole = (jax.grad(loss)(heads, size) for size in (5, LENGTH))
  same(blocks, whole)


@pytest.mark.parametrize('which', [0, 1, 2])
def test_a_token_that_is_not_finite_spoils_no_earlier_one(which):
  """Nor another segment, which has its own keys."""
  heads = [np.array(x) for x in arrays()]
  # It masks the one before it.
  row, token = np.argwhere(SEGMENTS == 2)[2]
  heads[which][row, token] = np.nan
  blocks, whole = (
    attend(
      attention.selective_attention,
      pruning.Selective(),
      [jnp.asarray(x) for x in heads],
      size,
      budget=4,
      segment_ids=jnp.asarray(SEGMENTS),
      memory_tau=1.0,
    )
    for size in (5, LENGTH)
  )
  assert np.isnan(blocks.out[row, token]).all()
  np.testing.assert_allclose(blocks.out, whole.out, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('name', ['tova', 'adakv'])
def test_a_network_reads_rows_and_prompts_by_blocks(name, monkeypatch):
  """Its logits, and the cache that prompts leave."""
  model = decoding_test.build('decoder', name)

  def run():
    logits = decoding_test.compiled(
      lambda: model.apply(jnp.asarray(cached_models.TOKENS), mutable=False)
    )()
    # Not the cached function, which was traced with another size.
    return logits, decoding_test.prefill.__wrapped__(model)

  whole = run()
  monkeypatch.setattr(query_blocks, 'SIZE', 3)
  same(run(), whole)


def test_nothing_of_n_by_n_is_compiled():
  """Neither f32 nor masks; whole rows have both."""
  length = 1040
  shape = jax.ShapeDtypeStruct((1, length, HEADS, SIZE), jnp.float32)

  def arrays_of_n_by_n(size):
    def run(bias, *heads):
      return attend(
        attention.selective_attention,
        pruning.Selective(),
        heads,
        size,
        budget=64,
        bias=bias,
        last=jnp.array([length - 1]),
      )

    text = jax.jit(run).lower(by_distance(), shape, shape, shape).as_text()
    return len(re.findall(rf'tensor<[0-9x]*{length}x{length}x', text))

  assert arrays_of_n_by_n(length) > 0
  assert arrays_of_n_by_n(104) == 0
