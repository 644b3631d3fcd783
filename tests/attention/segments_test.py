"""One meaning of segment ids in every implementation and attention function.

A segment is a run of equal ids that are not 0: an id that comes again after
others opens another segment.
"""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selective_t5x import attention
from selective_t5x.attention import blocked, masks, memory, reference
from selective_t5x.attention.gpu import kernels as pallas_gpu
from selective_t5x.attention.selection import Selection
from selective_t5x.attention.tpu import kernels as pallas_tpu
from selective_t5x.attention.variants import temperature
from tests.attention import loops, properties
from tests.support import smoke

BATCH, LENGTH, HEADS, SIZE = 2, 9, 2, 4
RECURRING = np.array(
  [[1, 1, 2, 2, 1, 1, 0, 1, 1], [4, 0, 4, 4, 7, 4, 4, 4, 7]], np.int32
)


def of_kernels(function, selects):
  """A kernel's own function, with the arguments of the public ones."""

  def attend(query, key, value, *, segment_ids):
    selection = None
    if selects:
      selection = Selection(query[:, :, :1], key[:, :, :1], SIZE**-0.5)
    out, _ = function(
      query,
      key,
      value,
      selection=selection,
      scale=SIZE**-0.5,
      bias=None,
      segment_ids=segment_ids,
      memory_tau=None,
    )
    return out

  return attend


interpreted = functools.partial(
  pallas_tpu.attention,
  interpret=True,
  block_sizes=pallas_tpu.BlockSizes(32, 128),
)
interpreted_gpu = functools.partial(
  pallas_gpu.attention,
  interpret=True,
  block_sizes=pallas_gpu.BlockSizes(16, 16, 16),
)
KERNELS = ('pallas_tpu', 'pallas_gpu')
small_blocks = functools.partial(blocked.attention, block=8)


def window(**kwargs):
  return functools.partial(
    attention.window_attention, window=3, keep_first=True, **kwargs
  )


def forgetting(query, key, value, **kwargs):
  return attention.forgetting_attention(
    query, key, value, log_forget=-jnp.abs(query[..., 0]), **kwargs
  )


def tempered(query, key, value, *, segment_ids):
  """Temperatures by what a token is and by where in its segment it stands."""
  inverse = temperature.inverse_temperature(
    token=query[:, :, 0, 0],
    alpha=jnp.float32(0.3),
    position=1 + masks.position_in_segment(LENGTH, segment_ids),
    segment_ids=segment_ids,
  )
  query = temperature.tempered(query, inverse, segment_ids)
  return attention.causal_attention(query, key, value, segment_ids=segment_ids)


def full(query, key, value, *, segment_ids):
  return attention.full_attention(
    query, key, value, query_ids=segment_ids, key_ids=segment_ids
  )


# Of each group all members give the same numbers.
FUNCTIONS = {
  'causal': {
    name: functools.partial(attention.causal_attention, implementation=name)
    for name in ('reference', 'blocked')
  }
  | {
    'blocks of 8': of_kernels(small_blocks, selects=False),
    'pallas_tpu': of_kernels(interpreted, selects=False),
    'pallas_gpu': of_kernels(interpreted_gpu, selects=False),
  },
  'selective': {
    name: functools.partial(attention.selective_attention, implementation=name)
    for name in ('reference', 'blocked')
  }
  | {
    'blocks of 8': of_kernels(small_blocks, selects=True),
    'pallas_tpu': of_kernels(interpreted, selects=True),
    'pallas_gpu': of_kernels(interpreted_gpu, selects=True),
  },
  'window': {
    name: window(implementation=name) for name in ('reference', 'blocked')
  },
  'strided': {'': functools.partial(attention.strided_attention, stride=2)},
  'forgetting': {
    name: functools.partial(forgetting, implementation=name)
    for name in ('reference', 'blocked')
  },
  'differential': {
    name: functools.partial(
      attention.differential_attention, share=0.4, implementation=name
    )
    for name in ('reference', 'blocked')
  },
  'stick-breaking': {'': attention.stick_breaking_attention},
  'stick-breaking, own value': {
    '': functools.partial(attention.stick_breaking_attention, remainder='value')
  },
  'tempered': {'': tempered},
}
EACH = [(group, name) for group, one in FUNCTIONS.items() for name in one]


@functools.cache
def compiled(group, name):
  """One of them, with ids that the compiler does not know.

  Returns the output and, of all but the kernels, whose interpreter is slow, the
  gradients of a function of it.
  """
  function = FUNCTIONS[group][name]

  def loss(inputs, ids):
    out = function(*inputs, segment_ids=ids)
    return jnp.sum(jnp.sin(3 * out)), out

  if name in KERNELS:
    return properties.compiled(lambda *args: (loss(*args)[1],))
  return properties.compiled(
    lambda *args: jax.grad(loss, has_aux=True)(*args)[::-1]
  )


def any_ids(most=3):
  row = st.lists(st.integers(0, most), min_size=LENGTH, max_size=LENGTH)
  rows = st.lists(row, min_size=BATCH, max_size=BATCH)
  return rows.map(lambda ids: np.array(ids, np.int32))


@pytest.mark.parametrize('group', FUNCTIONS)
@settings(max_examples=12, deadline=None)
@given(ids=any_ids(), seed=st.integers(0, 9))
def test_all_go_by_runs_of_equal_ids(group, ids, seed):
  inputs = properties.arrays(seed)
  results = []
  for name in FUNCTIONS[group]:
    run = compiled(group, name)
    results.append(run(inputs, ids))
    for one, other in zip(
      jax.tree.leaves(results[-1]),
      jax.tree.leaves(run(inputs, loops.runs(ids).astype(np.int32))),
      strict=True,
    ):
      np.testing.assert_array_equal(one, other)
  for other in results[1:]:
    # The kernels' output alone.
    for x, y in zip(
      jax.tree.leaves(results[0]), jax.tree.leaves(other), strict=False
    ):
      np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('ids', [RECURRING, RECURRING == 1])
@pytest.mark.parametrize('head', [None, 0])
def test_runs_are_those_of_the_nested_loops(ids, head):
  inputs = properties.arrays()
  wanted, _ = loops.attention_loop(
    *map(np.asarray, inputs), 0.5, None, ids, head
  )
  for name in FUNCTIONS['causal']:
    run = compiled('causal' if head is None else 'selective', name)
    out = run(inputs, ids)[0]
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)


FIRST = [(group, next(iter(one))) for group, one in FUNCTIONS.items()]


# Other implementations take such ids in the test above.
@pytest.mark.parametrize(
  ('group', 'name'),
  [*FIRST, *smoke.others(each for each in EACH if each not in FIRST)],
)
def test_true_is_a_segments_id_as_1_is(group, name):
  inputs, run = properties.arrays(), compiled(group, name)
  jax.tree.map(
    np.testing.assert_array_equal,
    run(inputs, RECURRING == 1),
    run(inputs, np.array(RECURRING == 1, np.int32)),
  )


@pytest.mark.parametrize('dtype', [np.int8, np.uint8, np.uint32])
def test_any_integers_are_ids(dtype):
  for function in (masks.segment_starts, masks.visible):
    np.testing.assert_array_equal(
      function(LENGTH, RECURRING.astype(dtype)), function(LENGTH, RECURRING)
    )


@pytest.mark.parametrize(('group', 'name'), [*EACH, ('', 'full')])
def test_ids_that_are_no_integers_are_refused(group, name, monkeypatch):
  # The functions' own checks answer, as outside of the tests.
  monkeypatch.setattr(jaxtyping.config, 'jaxtyping_disable', True)
  function = FUNCTIONS[group][name] if group else full
  inputs = properties.arrays()
  for ids in (np.ones((BATCH, LENGTH), np.float32), [[1] * LENGTH] * BATCH):
    with pytest.raises(
      ValueError, match=r'_ids must be an array of integers, got (float32|list)'
    ):
      function(*inputs, segment_ids=ids)


def test_f_and_m_go_by_runs_too():
  logits = jnp.asarray(
    np.random.default_rng(0).normal(size=(BATCH, LENGTH, LENGTH)), jnp.float32
  )
  runs = loops.runs(RECURRING)
  masking = attention.masking_matrix(logits, segment_ids=RECURRING)
  np.testing.assert_array_equal(
    masking, attention.masking_matrix(logits, segment_ids=runs)
  )
  np.testing.assert_allclose(
    masking, loops.masking_loop(logits, RECURRING), rtol=1e-5, atol=1e-6
  )
  seen = memory.visible_tokens(masking, 1.0, segment_ids=RECURRING)
  np.testing.assert_allclose(
    seen, loops.memory_loop(masking, 1.0, runs), rtol=1e-5
  )
  np.testing.assert_array_equal(
    memory.fraction_visible(seen[None], RECURRING),
    memory.fraction_visible(seen[None], runs),
  )
  for function in (
    lambda ids: attention.masking_matrix(logits, segment_ids=ids),
    lambda ids: memory.visible_tokens(masking, 1.0, segment_ids=ids),
    lambda ids: memory.fraction_visible(seen[None], ids),
  ):
    with pytest.raises(ValueError, match='must be an array of integers'):
      function(RECURRING.astype(np.float32))


def test_a_prefix_ends_with_its_run():
  inputs, prefix = properties.arrays(), np.ones((BATCH, LENGTH), np.int32)
  wanted, _ = loops.attention_loop(
    *map(np.asarray, inputs), 0.5, None, RECURRING, None, prefix=prefix
  )
  out = reference.causal_attention(
    *inputs, scale=0.5, bias=None, segment_ids=RECURRING, prefix=prefix
  )
  np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)


def test_attention_to_another_text_goes_by_the_ids_themselves():
  query, key, value = properties.arrays()
  apart = np.array([[1, 1, 2, 2, 1, 1, 0, 0, 0]] * 2, np.int32)
  out = attention.full_attention(
    query[:, :1],
    key,
    value,
    query_ids=np.ones((BATCH, 1), np.int32),
    key_ids=apart,
  )
  joined = np.nonzero(apart[0] == 1)[0]
  wanted = attention.full_attention(
    query[:, :1],
    key[:, joined],
    value[:, joined],
    query_ids=np.ones((BATCH, 1), np.int32),
    key_ids=np.ones((BATCH, len(joined)), np.int32),
  )
  np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)
