import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from selective_t5x import attention
from selective_t5x.attention import masking_matrix
from selective_t5x.errors import UserError
from tests.attention import loops

PACKED = np.array(
  [[1, 1, 1, 1, 2, 2, 2, 0, 0], [3, 3, 0, 0, 4, 4, 4, 4, 4]], np.int32
)
FUNCTIONS = [attention.causal_attention, attention.selective_attention]


def arrays(batch=2, length=9, heads=2, size=4, seed=0, dtype=np.float32):
  rng = np.random.default_rng(seed)
  return [
    jnp.asarray(rng.normal(size=(batch, length, heads, size)), dtype)
    for _ in range(3)
  ]


def bias_like(*shape):
  return np.random.default_rng(7).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('segment_ids', [None, PACKED])
@pytest.mark.parametrize('bias', [None, bias_like(1, 2, 9, 9)])
@pytest.mark.parametrize('scale', [None, 0.9])
@pytest.mark.parametrize('head', [None, 0, 1])
def test_output_and_f_are_the_nested_loops(segment_ids, bias, scale, head):
  query, key, value = arrays()
  kwargs = dict(scale=scale, bias=bias, segment_ids=segment_ids)
  wanted_out, wanted_masking = loops.attention_loop(
    *map(np.asarray, (query, key, value)),
    0.5 if scale is None else scale,  # 4 ** -0.5
    bias,
    segment_ids,
    head,
  )
  if head is None:
    out = attention.causal_attention(query, key, value, **kwargs)
  else:
    out, masking = attention.selective_attention(
      query, key, value, selection_head=head, return_masking=True, **kwargs
    )
    np.testing.assert_allclose(masking, wanted_masking, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(out, wanted_out, rtol=1e-5, atol=1e-6)


PREFIX = np.array(
  [[1, 1, 1, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1, 0]], np.int32
)


@pytest.mark.parametrize('segment_ids', [None, PACKED])
def test_a_prefix_is_the_nested_loops(segment_ids):
  inputs = arrays()
  wanted, _ = loops.attention_loop(
    *map(np.asarray, inputs), 0.5, None, segment_ids, None, prefix=PREFIX
  )
  out = attention.causal_attention(
    *inputs, segment_ids=segment_ids, prefix=PREFIX
  )
  np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)
  causal = attention.causal_attention(*inputs, segment_ids=segment_ids)
  assert not np.allclose(out, causal)
  none = attention.causal_attention(
    *inputs, segment_ids=segment_ids, prefix=np.zeros_like(PREFIX)
  )
  np.testing.assert_allclose(none, causal, rtol=1e-5, atol=1e-6)


def test_a_prefix_of_another_shape_is_refused():
  with pytest.raises(ValueError, match=r'prefix must be \[B, N\] = \[2, 9\]'):
    attention.causal_attention(*arrays(), prefix=PREFIX[:1])


def test_what_is_returned_and_in_which_order():
  inputs = arrays()
  kwargs = dict(segment_ids=PACKED)
  out = attention.selective_attention(*inputs, **kwargs)
  two = attention.selective_attention(*inputs, memory_tau=1.0, **kwargs)
  three = attention.selective_attention(
    *inputs, memory_tau=1.0, return_masking=True, **kwargs
  )
  assert isinstance(out, jax.Array) and out.shape == (2, 9, 2, 4)
  assert [x.shape for x in two] == [(2, 9, 2, 4), (2, 9)]
  assert [x.shape for x in three] == [(2, 9, 2, 4), (2, 9), (2, 9, 9)]
  for other in (two[0], three[0]):
    np.testing.assert_allclose(out, other, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    two[1], loops.memory_loop(np.asarray(three[2]), 1.0, PACKED), rtol=1e-5
  )


@pytest.mark.parametrize('function', FUNCTIONS)
def test_a_packed_row_is_each_of_its_segments_alone(function):
  inputs = arrays()
  packed = function(*inputs, segment_ids=PACKED)
  packed_grads = gradients(function, inputs, segment_ids=PACKED)
  for row, ids in enumerate(PACKED):
    for segment in sorted(set(ids) - {0}):
      where = ids == segment
      alone = [x[row : row + 1, where] for x in inputs]
      np.testing.assert_allclose(
        packed[row, where], function(*alone)[0], rtol=1e-5, atol=1e-6
      )
      for packed_grad, grad in zip(
        packed_grads, gradients(function, alone), strict=True
      ):
        np.testing.assert_allclose(
          packed_grad[row, where], grad[0], rtol=1e-4, atol=1e-5
        )


def gradients(function, inputs, **kwargs):
  def loss(*inputs):
    return jnp.sum(jnp.sin(3 * function(*inputs, **kwargs)))

  return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*inputs)


@pytest.mark.parametrize('function', FUNCTIONS)
def test_dead_slots_never_matter(function):
  clean = arrays()
  live = (PACKED != 0)[:, :, None, None]
  dirty = [jnp.where(live, x, jnp.nan) for x in clean]
  cells = (PACKED[:, :, None] == PACKED[:, None, :]) & (PACKED[:, :, None] != 0)
  bias = bias_like(2, 2, 9, 9)
  dirty_bias = np.where(cells[:, None], bias, np.nan)

  def value_and_gradients(inputs, bias):
    def loss(query, key, value, bias):
      out = function(query, key, value, bias=bias, segment_ids=PACKED)
      return jnp.sum(jnp.sin(3 * out)), out

    grad = jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True)
    return jax.jit(grad)(*inputs, bias)

  clean_grads, clean_out = value_and_gradients(clean, bias)
  dirty_grads, dirty_out = value_and_gradients(dirty, dirty_bias)
  np.testing.assert_array_equal(clean_out, dirty_out)
  for a, b in zip(clean_grads, dirty_grads, strict=True):
    np.testing.assert_array_equal(a, b)
  for rows in (clean_out, *clean_grads[:3]):
    np.testing.assert_array_equal(np.where(live, 0, rows), 0)


def test_padding_rows_of_memory_are_zero_and_have_no_gradient():
  query, key, value = arrays()
  live = (PACKED != 0)[:, :, None, None]

  def memory(query, key):
    _, memory = attention.selective_attention(
      query, key, value, memory_tau=1.0, segment_ids=PACKED
    )
    return jnp.sum(memory**2), memory

  grads, got = jax.grad(memory, argnums=(0, 1), has_aux=True)(
    jnp.where(live, query, jnp.nan), jnp.where(live, key, jnp.nan)
  )
  np.testing.assert_array_equal(np.asarray(got)[PACKED == 0], 0)
  for grad in grads:
    np.testing.assert_array_equal(np.where(live, 0, grad), 0)
    assert np.all(np.isfinite(grad)) and np.any(grad != 0)


@pytest.mark.parametrize('function', FUNCTIONS)
def test_gradients_are_the_finite_differences(function, float64):
  query, key, value = arrays(dtype=np.float64)
  bias = jnp.asarray(bias_like(1, 2, 9, 9), jnp.float64)

  def call(query, key, value, bias):
    return function(query, key, value, bias=bias, segment_ids=PACKED)

  check_grads(call, (query, key, value, bias), order=1, modes=['rev'])


def test_selection_reaches_other_heads_and_has_a_gradient(float64):
  query, key, value = arrays(dtype=np.float64)

  def other_head(query):
    out = attention.selective_attention(query, key, value, segment_ids=PACKED)
    return jnp.sum(jnp.sin(3 * out[:, :, 1]))

  grad = jax.grad(other_head)(query)[:, :, 0]
  assert np.any(grad != 0)
  check_grads(other_head, (query,), order=1, modes=['rev'])


def test_a_shared_bias_sums_the_gradient_of_its_copies():
  inputs = arrays()
  small, full = bias_like(2, 1, 9), np.zeros((2, 2, 9, 9), np.float32)

  def loss(bias):
    out = attention.selective_attention(*inputs, bias=bias, segment_ids=PACKED)
    return jnp.sum(jnp.sin(3 * out))

  np.testing.assert_allclose(
    jax.grad(loss)(small),
    jax.grad(loss)(full + small).sum(0)[:, :].sum(1, keepdims=True),
    rtol=1e-4,
    atol=1e-5,
  )


def test_where_nothing_selects_selective_is_the_baseline():
  query, key, value = arrays()
  # A bias this low leaves the head's softmax alone and clips its selection.
  bias = np.full((2, 1, 1), -100.0, np.float32)
  np.testing.assert_allclose(
    attention.selective_attention(query, key, value, bias=bias),
    attention.causal_attention(query, key, value, bias=bias),
    rtol=1e-6,
  )
  assert not np.allclose(
    attention.selective_attention(query, key, value),
    attention.causal_attention(query, key, value),
    atol=1e-3,
  )


def test_masking_returned_is_that_of_the_heads_logits():
  query, key, value = arrays()
  _, masking = attention.selective_attention(
    query, key, value, selection_head=1, return_masking=True
  )
  logits = jnp.einsum('bid,bjd->bij', query[:, :, 1], key[:, :, 1]) / 2
  np.testing.assert_allclose(masking, masking_matrix(logits), rtol=1e-5)


@pytest.mark.parametrize('function', FUNCTIONS)
def test_bfloat16_inputs_are_computed_in_float32(function):
  inputs = arrays(dtype=jnp.bfloat16)
  out = function(*inputs, segment_ids=PACKED)
  assert out.dtype == jnp.bfloat16
  exact = function(*(x.astype(jnp.float32) for x in inputs), segment_ids=PACKED)
  np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))
  for grad in gradients(function, inputs, segment_ids=PACKED):
    assert grad.dtype == jnp.bfloat16 and np.all(np.isfinite(grad))


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_memory_and_f_are_float32(dtype):
  _, memory, masking = attention.selective_attention(
    *arrays(dtype=dtype), memory_tau=1.0, return_masking=True
  )
  assert memory.dtype == masking.dtype == jnp.float32


@pytest.mark.parametrize('function', FUNCTIONS)
def test_errors_of_shape_name_what_was_expected(function):
  query, key, value = arrays()
  with pytest.raises(ValueError, match=r'one shape \[B, N, H, D\]'):
    function(query, key[:, :4], value)
  with pytest.raises(ValueError, match=r'one shape \[B, N, H, D\]'):
    function(query[0], key[0], value[0])
  with pytest.raises(ValueError, match=r'segment_ids must be .*\[2, 9\]'):
    function(query, key, value, segment_ids=PACKED[:, :4])
  for shape in [(3, 9, 9), (1, 2, 2, 9, 9), (2, 9, 8)]:
    with pytest.raises(ValueError, match=r'broadcast to .*\[2, 2, 9, 9\]'):
      function(query, key, value, bias=np.zeros(shape, np.float32))


@pytest.mark.parametrize('head', [-1, 2, 0.0, None])
def test_a_head_out_of_range_says_the_range(head):
  with pytest.raises(UserError, match='integer from 0 to 1, there are 2 heads'):
    attention.selective_attention(*arrays(), selection_head=head)


@pytest.mark.parametrize('tau', [0, -1.0])
def test_memory_tau_must_be_positive(tau):
  with pytest.raises(UserError, match='expected a positive number'):
    attention.selective_attention(*arrays(), memory_tau=tau)


def test_selection_can_read_its_logits_without_their_bias():
  query, key, value = arrays()
  bias = bias_like(1, 2, 9, 9)
  out, masking = attention.selective_attention(
    query,
    key,
    value,
    bias=bias,
    segment_ids=PACKED,
    selection_bias=False,
    return_masking=True,
  )
  logits = np.einsum('bid,bjd->bij', query[:, :, 0], key[:, :, 0]) * 0.5
  np.testing.assert_allclose(
    masking, loops.masking_loop(logits, PACKED), rtol=1e-5, atol=1e-6
  )
  # The softmax has the bias all the same.
  wanted = attention.causal_attention(
    query, key, value, bias=bias - masking[:, None], segment_ids=PACKED
  )
  np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)


def test_masking_scale_multiplies_f():
  inputs = arrays()
  kwargs = dict(
    bias=bias_like(1, 2, 9, 9), segment_ids=PACKED, return_masking=True
  )
  _, whole = attention.selective_attention(*inputs, **kwargs)
  out, half = attention.selective_attention(
    *inputs, masking_scale=jnp.float32(0.5), **kwargs
  )
  np.testing.assert_allclose(half, 0.5 * whole, rtol=1e-5, atol=1e-6)
  kwargs.pop('return_masking')
  np.testing.assert_allclose(
    attention.selective_attention(*inputs, masking_scale=0.5, **kwargs),
    out,
    rtol=1e-5,
    atol=1e-6,
  )
  np.testing.assert_allclose(
    attention.selective_attention(*inputs, masking_scale=0, **kwargs),
    attention.causal_attention(*inputs, **kwargs),
    rtol=1e-5,
    atol=1e-6,
  )


def test_full_attention_is_the_nested_loops():
  _, key, value = arrays()
  query = arrays(length=5, seed=1)[0]
  bias = bias_like(1, 2, 5, 9)
  query_ids = np.array([[1, 1, 2, 2, 0], [4, 4, 5, 3, 3]])
  wanted = np.zeros(query.shape)
  for b, h, i in np.ndindex(2, 2, 5):
    seen = [
      j for j in range(9) if query_ids[b, i] and query_ids[b, i] == PACKED[b, j]
    ]
    weights = [
      np.exp(0.5 * np.dot(query[b, i, h], key[b, j, h]) + bias[0, h, i, j])
      for j in seen
    ]
    for weight, j in zip(weights, seen, strict=True):
      wanted[b, i, h] += weight / sum(weights) * value[b, j, h]
  dead = (PACKED == 0)[:, :, None, None]
  out = attention.full_attention(
    query,
    jnp.where(dead, np.nan, key),
    jnp.where(dead, np.nan, value),
    bias=bias,
    query_ids=jnp.asarray(query_ids),
    key_ids=jnp.asarray(PACKED),
  )
  np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)
  # Padding, and segment 5, which has no key.
  assert not np.any(out[0, 4]) and not np.any(out[1, 2])


def test_full_attention_names_ids_of_another_shape():
  query, key, value = arrays()
  with pytest.raises(
    ValueError, match=r'key_ids must be \[2, 9\], got \[2, 8\]'
  ):
    attention.full_attention(
      query, key, value, query_ids=PACKED, key_ids=PACKED[:, :8]
    )


def test_heads_that_select_have_an_f_each():
  query, key, value = arrays(heads=4)
  each, one = (
    attention.selective_attention(
      query, key, value, selection_head=head, return_masking=True
    )[1]
    for head in ('per_head', 2)
  )
  assert each.shape == (2, 4, 9, 9)
  np.testing.assert_allclose(each[:, 2], one, atol=1e-6)


@pytest.mark.parametrize('implementation', ['reference', 'blocked'])
@pytest.mark.parametrize('bias', [None, bias_like(1, 6, 9, 9)])
def test_a_head_of_each_group_selects_for_its_group(bias, implementation):
  inputs = arrays(heads=6)
  settings = dict(
    bias=bias,
    segment_ids=PACKED,
    memory_tau=1.0,
    implementation=implementation,
  )

  def groups(inputs):
    return attention.selective_attention(
      *inputs, selection_groups=2, selection_head=1, **settings
    )

  def each_alone(inputs):
    """The heads of each group as if there were no others."""
    parts = []
    for heads in (slice(0, 3), slice(3, 6)):
      of_group = {} if bias is None else {'bias': bias[:, heads]}
      parts.append(
        attention.selective_attention(
          *(x[:, :, heads] for x in inputs),
          selection_head=1,
          **(settings | of_group),
        )
      )
    (out_0, seen_0), (out_1, seen_1) = parts
    return jnp.concatenate([out_0, out_1], 2), (seen_0 + seen_1) / 2

  def gradient(function):
    return jax.jit(
      jax.grad(lambda x: sum(jnp.sum(jnp.sin(y)) for y in function(x)))
    )(inputs)

  for one, other in (
    (groups(inputs), each_alone(inputs)),
    (gradient(groups), gradient(each_alone)),
  ):
    for x, y in zip(one, other, strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ('settings', 'error', 'message'),
  [
    (dict(selection_groups=3), UserError, '3: expected a divisor of the 2'),
    (dict(selection_groups=0), UserError, '0: expected a divisor of the 2'),
    (dict(selection_groups='two'), UserError, "'two': expected a divisor"),
    (
      dict(selection_groups=2, selection_head=1),
      UserError,
      'an integer from 0 to 0, there are 2 heads in 2 groups',
    ),
    (
      dict(selection_groups=2, selection_head='mean'),
      UserError,
      "expected 1 where it is 'mean'",
    ),
    (
      dict(
        selection_groups=2,
        selection_query=jnp.zeros((2, 9, 2, 4)),
        selection_key=jnp.zeros((2, 9, 2, 4)),
      ),
      UserError,
      'queries and keys of its own select',
    ),
    (dict(selection_head=True), UserError, 'True: expected an integer'),
    (dict(selection_head='means'), UserError, "'means': expected .* 'mean' or"),
    (
      dict(selection_query=jnp.zeros((2, 9, 3, 4))),
      ValueError,
      r'G a divisor of the 2 heads, got \[2, 9, 3, 4\], None',
    ),
    (
      dict(relu=False, implementation='pallas_tpu'),
      UserError,
      'three constraints',
    ),
  ],
)
def test_selections_that_cannot_be_are_named(settings, error, message):
  with pytest.raises(error, match=message):
    attention.selective_attention(*arrays(), **settings)


@pytest.mark.parametrize(
  'arguments',
  [
    {},
    {'bias': bias_like(1, 2, 150, 150)},
    {'bias': bias_like(3, 1, 1, 150), 'relu': False},
    {'selection_head': 'per_head', 'protect_bos': False},
    {'selection_head': 'mean', 'protect_self': False},
    {'selection_groups': 2, 'bias': bias_like(1, 2, 150, 150)},
  ],
)
def test_one_row_of_f_needs_no_f(arguments):
  query, key, value = arrays(batch=3, length=150)
  at = np.array([0, 130, 149])
  out, f = attention.selective_attention(
    query, key, value, return_masking=True, **arguments
  )
  also, row = attention.selective_attention(
    query, key, value, masking_row=at, implementation='blocked', **arguments
  )
  expected = np.stack([f[b, ..., i, :] for b, i in enumerate(at)])
  np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(also, out, rtol=1e-4, atol=1e-4)
