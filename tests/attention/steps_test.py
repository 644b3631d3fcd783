"""A step of cached decoding is one row of the parallel form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention
from selective_t5x.attention import mesh, steps

BATCH, LENGTH, HEADS, SIZE = 3, 9, 2, 4


def arrays(dtype=np.float32):
  rng = np.random.default_rng(0)
  shape = (BATCH, LENGTH, HEADS, SIZE)
  return [jnp.asarray(2 * rng.normal(size=shape), dtype) for _ in range(3)]


def biases():
  rng = np.random.default_rng(7)
  return {
    'none': None,
    'per head': rng.normal(size=(1, HEADS, LENGTH, LENGTH)),
    'per row': rng.normal(size=(BATCH, 1, LENGTH, LENGTH)),
  }


def empty_slots_hold_nan(x, position):
  filled = jnp.arange(LENGTH) <= position[:, None]
  return jnp.where(
    filled.reshape(filled.shape + (1,) * (x.ndim - 2)), x, np.nan
  )


def decode(function, query, key, value, bias, **kwargs):
  """Feeds token by token; rows start late by their number, so they differ."""
  selects = function is attention.selective_attention
  masking = jnp.zeros((BATCH, LENGTH), query.dtype)
  outs = np.zeros(query.shape)
  rows = np.arange(BATCH)
  for step in range(LENGTH + BATCH - 1):
    position = np.clip(step - rows, 0, LENGTH - 1)
    # A row that has not begun or is over stays as it was.
    runs = (step >= rows) & (step - rows < LENGTH)
    row_bias = None
    if bias is not None:
      full = np.broadcast_to(bias, (BATCH, *bias.shape[1:]))
      row_bias = jnp.asarray(full[rows, :, position], query.dtype)[:, :, None]
    kwargs.update({'masking': masking} if selects else {})
    out = function(
      query[rows, position][:, None],
      empty_slots_hold_nan(key, position),
      empty_slots_hold_nan(value, position),
      bias=row_bias,
      position=jnp.asarray(position),
      **kwargs,
    )
    if selects:
      out, after = out
      masking = jnp.where(runs[:, None], after, masking)
    outs[rows[runs], position[runs]] = out[runs, 0]
  assert np.all(np.isfinite(masking))
  return outs


@pytest.mark.parametrize('bias', biases())
@pytest.mark.parametrize(
  ('function', 'kwargs'),
  [
    (attention.causal_attention, {}),
    (attention.selective_attention, {}),
    (attention.selective_attention, {'selection_head': 1, 'scale': 1.0}),
    (attention.selective_attention, {'selection_bias': False}),
    (attention.selective_attention, {'masking_scale': 0.5}),
  ],
)
def test_steps_are_the_rows_of_the_parallel_form(
  function, kwargs, bias, float64
):
  inputs = arrays(np.float64)
  bias = biases()[bias]
  np.testing.assert_allclose(
    decode(function, *inputs, bias, **kwargs),
    function(*inputs, bias=bias, **kwargs),
    rtol=1e-9,
    atol=1e-9,
  )


def test_steps_are_near_the_parallel_form_in_float32():
  inputs = arrays()
  np.testing.assert_allclose(
    decode(attention.selective_attention, *inputs, None),
    attention.selective_attention(*inputs),
    rtol=1e-5,
    atol=1e-5,
  )


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(query=(3, 2, 2, 4)), r'one query, \[B, 1, H, D\]'),
    (dict(key=(3, 8, 2, 4)), r'key and value \[B, N, H, D\]'),
    (dict(position=(2,)), r'position must be \[B\] = \[3\]'),
    (dict(masking=(3, 8)), r'masking, \[B, N\] = \[3, 9\], got \[3, 8\]'),
    (dict(masking=None), 'masking, .* got None'),
    (dict(bias=(1, 2, 2, 9)), r'\[B, H, Q, N\] = \[3, 2, 1, 9\]'),
  ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
  shapes = (
    dict(
      query=(3, 1, 2, 4),
      key=(3, 9, 2, 4),
      value=(3, 9, 2, 4),
      position=(3,),
      masking=(3, 9),
    )
    | change
  )
  given = {k: v if v is None else jnp.zeros(v) for k, v in shapes.items()}
  with pytest.raises(ValueError, match=message):
    attention.selective_attention(
      given.pop('query'), given.pop('key'), given.pop('value'), **given
    )


@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
def test_only_cpus_add_halves(monkeypatch, platform):
  # Where the program goes counts, not where it is compiled.
  monkeypatch.setattr(mesh, 'platform', lambda: platform)
  query, key, _ = arrays()

  def logits(query, key):  # Its own, or the other platform's trace is found.
    return steps.query_logits(query, key, 1.0, None)

  program = jax.make_jaxpr(logits)(query[:, :1], key)
  assert ('split' in str(program)) == (platform == 'cpu')
