"""Window and strided attention in their fast form, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x import attention
from selective_t5x.errors import UserError

BATCH, LENGTH, HEADS, SIZE = 2, 17, 2, 4
PACKED = np.ones((BATCH, LENGTH), np.int32)
PACKED[0, 4:12], PACKED[0, 12:], PACKED[1, 13:] = 2, 0, 7


def arrays(rows=LENGTH):
  rng = np.random.default_rng(0)
  shape = (BATCH, rows, HEADS, SIZE)
  return [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(3)]


# Windows of one token, of no divisor of the length, and just short of it.
@pytest.mark.parametrize(
  ('window', 'segment_ids'), [(1, None), (5, PACKED), (16, PACKED)]
)
def test_blocks_of_a_window_are_the_reference(window, segment_ids):
  def loss(inputs, keep_first, implementation):
    out = attention.window_attention(
      *inputs,
      window=window,
      keep_first=keep_first,
      segment_ids=segment_ids,
      implementation=implementation,
    )
    return jnp.sum(jnp.sin(3 * out)), out

  @functools.partial(
    jax.jit, compiler_options={'xla_backend_optimization_level': 0}
  )
  def run(inputs):
    grad = jax.grad(loss, has_aux=True)
    return [
      [grad(inputs, first, name) for name in ('blocked', 'reference')]
      for first in (False, True)
    ]

  inputs = arrays()
  if segment_ids is not None:
    # Padding may hold anything.
    live = jnp.asarray(segment_ids != 0)[..., None, None]
    inputs = [jnp.where(live, x, np.nan) for x in inputs]
  for got, wanted in run(inputs):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
      np.testing.assert_allclose(x, y, atol=2e-5)
      assert np.all(np.isfinite(x))


def test_memory_of_a_window_does_not_grow_with_the_square():
  inputs = [jax.ShapeDtypeStruct((1, 4096, 1, 8), jnp.float32)] * 3
  jaxpr = jax.make_jaxpr(
    functools.partial(attention.window_attention, window=64, keep_first=True)
  )(*inputs)
  largest = max(out.aval.size for e in jaxpr.eqns for out in e.outvars)
  assert largest < 4096 * 4096 / 16


@pytest.mark.parametrize(
  ('function', 'settings', 'message'),
  [
    ('window', dict(window=0), r'window = 0: expected an integer of 1'),
    ('strided', dict(stride=2.0), r'stride = 2.0: expected an integer of 1'),
    (
      'window',
      dict(window=2, implementation='block'),
      "implementation = 'block': .*nearest: blocked",
    ),
    (
      'window',
      dict(window=2, implementation='blocked', bias=jnp.zeros((1, 1, 5, 5))),
      'it adds no bias',
    ),
  ],
)
def test_what_is_refused_is_named(function, settings, message):
  function = getattr(attention, f'{function}_attention')
  with pytest.raises(UserError, match=message):
    function(*arrays(5), **settings)
