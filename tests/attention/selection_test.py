import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from selective_t5x import attention
from selective_t5x.attention import masking_matrix, masks, memory
from selective_t5x.attention.gpu import kernels as pallas_gpu
from selective_t5x.attention.selection import Constraints, Selection
from selective_t5x.attention.tpu import kernels as pallas_tpu
from tests.attention import loops, properties


@st.composite
def packed_rows(draw):
  """Two rows of contiguous segments with padding between and after them."""
  batch, length = 2, draw(st.sampled_from([1, 2, 7, 12]))
  rows = []
  for _ in range(batch):
    row, segment = [], 0
    while len(row) < length:
      run = draw(st.integers(1, length))
      padding = draw(st.booleans()) and row
      segment += not padding
      row += [0 if padding else segment] * run
    rows.append(row[:length])
  return np.array(rows, np.int32)


def logits_like(ids, seed=0):
  batch, length = ids.shape
  return (
    np.random.default_rng(seed)
    .normal(size=(batch, length, length))
    .astype(np.float32)
  )


@settings(max_examples=60, deadline=None)
@given(ids=packed_rows(), seed=st.integers(0, 99))
def test_masking_matrix_is_the_nested_loop_cell_by_cell(ids, seed):
  logits = logits_like(ids, seed)
  np.testing.assert_allclose(
    masking_matrix(logits, segment_ids=ids),
    loops.masking_loop(logits, ids),
    rtol=1e-5,
  )


@pytest.mark.parametrize('length', [1, 2, 3, 17])
def test_without_segment_ids_a_row_is_one_segment(length):
  logits = logits_like(np.ones((2, length)))
  got = masking_matrix(logits)
  np.testing.assert_allclose(got, loops.masking_loop(logits), rtol=1e-5)
  ones = np.ones((2, length), np.int32)
  np.testing.assert_array_equal(got, masking_matrix(logits, segment_ids=ones))


def test_what_the_paper_says_of_who_masks_whom():
  masking = np.asarray(masking_matrix(np.ones((1, 5, 5), np.float32)))[0]
  np.testing.assert_array_equal(
    masking,
    [
      [0, 0, 0, 0, 0],
      [0, 0, 0, 0, 0],
      [0, 0, 0, 0, 0],  # Query 2 asks to mask key 1 ...
      [0, 1, 0, 0, 0],  # ... which later queries feel.
      [0, 2, 1, 0, 0],  # Key 0 is <BOS>; no token masks itself.
    ],
  )


def test_a_long_sum_keeps_float32_accuracy():
  logits = np.abs(logits_like(np.ones((1, 256))))
  np.testing.assert_allclose(
    masking_matrix(logits), loops.masking_loop(logits), rtol=1e-5
  )


def test_bfloat16_logits_are_summed_in_float32():
  logits = jnp.full((1, 300, 300), 1.0, jnp.bfloat16)
  masking = masking_matrix(logits)
  assert masking.dtype == jnp.float32
  assert masking[0, 299, 1] == 297  # bfloat16 would stop at 256.


def test_nan_in_dead_cells_reaches_neither_value_nor_gradient():
  ids = np.array([[1, 1, 1, 0, 2, 2, 2, 2, 0, 0]], np.int32)
  logits = logits_like(ids)
  live = (ids[:, :, None] == ids[:, None, :]) & (ids[:, :, None] != 0)
  dirty = np.where(live & np.tri(10, dtype=bool), logits, np.nan)

  def weighted(x):
    return jnp.sum(jnp.cos(masking_matrix(x, segment_ids=ids)))

  for clean_one, dirty_one in [
    (masking_matrix(logits, segment_ids=ids),) * 2,
    (jax.grad(weighted)(logits), jax.grad(weighted)(dirty)),
    (
      masking_matrix(logits, segment_ids=ids),
      masking_matrix(dirty, segment_ids=ids),
    ),
  ]:
    np.testing.assert_array_equal(clean_one, dirty_one)


def test_gradient_of_the_masking_matrix(float64):
  ids = np.array([[1, 1, 1, 1, 2, 2, 2, 0]], np.int32)
  logits = jnp.asarray(logits_like(ids), jnp.float64)
  check_grads(lambda x: masking_matrix(x, segment_ids=ids), (logits,), order=1)
  # By hand: d F[i, j] / d A[k, j] is 1 for k < i where A[k, j] selects.
  grad = jax.grad(lambda x: masking_matrix(x, segment_ids=ids)[0, 3, 1])(logits)
  wanted = np.zeros((1, 8, 8))
  wanted[0, 2, 1] = logits[0, 2, 1] > 0
  np.testing.assert_array_equal(grad, wanted)


@pytest.mark.parametrize('shape', [(3, 3), (1, 3, 4), (1, 2, 3, 3)])
def test_masking_matrix_names_a_wrong_shape(shape):
  with pytest.raises(ValueError, match=r'head_logits must be \[B, N, N\]'):
    masking_matrix(np.zeros(shape, np.float32))


def test_masking_matrix_names_wrong_segment_ids():
  with pytest.raises(ValueError, match=r'segment_ids must be .* \[1, 3\]'):
    masking_matrix(
      np.zeros((1, 3, 3), np.float32), segment_ids=np.ones((1, 4), int)
    )


@settings(max_examples=30, deadline=None)
@given(ids=packed_rows(), tau=st.sampled_from([0.5, 1.0, 3.0]))
def test_memory_is_the_nested_loop(ids, tau):
  masking = loops.masking_loop(logits_like(ids), ids).astype(np.float32)
  np.testing.assert_allclose(
    memory.visible_tokens(masking, tau, segment_ids=ids),
    loops.memory_loop(masking, tau, ids),
    rtol=1e-5,
    atol=1e-5,
  )


def test_the_cotangent_of_memory_enters_where_f_is_below_tau():
  ids = np.array([[1, 1, 1, 2, 2, 2, 0, 0]], np.int32)
  tau = 0.5
  masking = np.abs(logits_like(ids))
  masking[0, 1, 0] = tau  # On the edge: gone, no gradient.
  cotangent = np.random.default_rng(1).normal(size=(1, 8)).astype(np.float32)
  _, vjp = jax.vjp(
    lambda f: memory.visible_tokens(f, tau, segment_ids=ids), masking
  )
  wanted = np.zeros_like(masking)
  for i in range(8):
    for j in range(i + 1):
      if ids[0, i] and ids[0, i] == ids[0, j] and masking[0, i, j] < tau:
        wanted[0, i, j] = -cotangent[0, i] / tau
  np.testing.assert_allclose(vjp(cotangent)[0], wanted, rtol=1e-6)


def test_a_key_that_is_unmasked_counts_as_one_token():
  masking = jnp.array([[[0.0, 0.0], [-3.0, 0.25]]])
  seen, grad = jax.value_and_grad(
    lambda x: memory.visible_tokens(x, 0.5)[0, 1]
  )(masking)
  assert seen == 1.5
  np.testing.assert_array_equal(grad[0, 1], [0.0, -2.0])


@pytest.mark.parametrize('head', [0, 'mean', 'per_head'])
@pytest.mark.parametrize('implementation', ['reference', 'blocked'])
def test_without_relu_no_key_counts_more_than_one_token(implementation, head):
  inputs = properties.arrays()
  ids, tau = properties.PACKED, 0.5
  arguments = dict(
    segment_ids=ids, memory_tau=tau, relu=False, selection_head=head
  )
  _, _, masking = attention.selective_attention(
    *inputs, return_masking=True, **arguments
  )
  assert np.min(masking) < -1

  def wanted(masking):
    """M written out, of F as a function of the inputs."""
    visible = masks.visible(properties.LENGTH, ids)
    groups = masking if masking.ndim == 4 else masking[:, None]
    tokens = 1 - jnp.clip(groups, 0, tau) / tau
    tokens = jnp.where(visible[:, None], tokens, 0)
    return jnp.mean(jnp.sum(tokens, axis=-1), axis=1)

  def of_f(query):
    _, masking = attention.selective_attention(
      query,
      *inputs[1:],
      return_masking=True,
      **arguments | {'memory_tau': None},
    )
    return wanted(masking)

  def of_m(query):
    return attention.selective_attention(
      query, *inputs[1:], implementation=implementation, **arguments
    )[1]

  weights = np.random.default_rng(2).normal(size=ids.shape)
  (got, grad), (want, want_grad) = (
    properties.compiled(
      jax.value_and_grad(lambda query, f=f: jnp.sum(weights * f(query)))
    )(inputs[0])
    for f in (of_m, of_f)
  )
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(grad, want_grad, rtol=1e-4, atol=1e-4)
  seen = of_m(inputs[0])
  np.testing.assert_allclose(seen, wanted(masking), rtol=1e-4, atol=1e-4)
  # At most its position, which the unbounded formula exceeds.
  position = 1 + masks.position_in_segment(properties.LENGTH, ids)
  assert np.all(seen <= position + 1e-5)


@pytest.mark.parametrize('kernels', [pallas_tpu, pallas_gpu])
def test_the_kernels_refuse_selection_without_relu(kernels):
  # So that no F of theirs is below zero.
  query, key, value = properties.arrays()
  selection = Selection(
    query[:, :, :1], key[:, :, :1], 0.5, constraints=Constraints(relu=False)
  )
  with pytest.raises(ValueError, match="the paper's three constraints"):
    kernels.attention(
      query,
      key,
      value,
      selection=selection,
      scale=0.5,
      memory_tau=1.0,
      interpret=True,
    )
