"""What every attention function of rows must keep, whatever its weights.

`function` takes (query, key, value, *, segment_ids, position, **per_token), the
last arrays [B, N, ...] with one entry a token.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# Most of a test's time is compiling.
compiled = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)

PACKED = np.array(
  [[1, 1, 1, 1, 2, 2, 2, 0, 0], [3, 3, 0, 0, 4, 4, 4, 4, 4]], np.int32
)
BATCH, LENGTH, HEADS, SIZE = 2, 9, 2, 4


def arrays(seed=0, dtype=np.float32):
  """Query, key and value, [B, N, H, D] each."""
  rng = np.random.default_rng(seed)
  shape = (BATCH, LENGTH, HEADS, SIZE)
  return [jnp.asarray(2 * rng.normal(size=shape), dtype) for _ in range(3)]


def bias_like(*shape):
  return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def only_where(live, x):
  """x, with NaN where there is no token."""
  return jnp.where(live.reshape(live.shape + (1,) * (x.ndim - 2)), x, jnp.nan)


def check_padding(function, inputs, per_token=None):
  """Padding is zero, has no gradient, and what it holds does not matter."""
  names = list(per_token or {})
  given = [*inputs, *(per_token or {}).values()]

  def loss(args, ids):
    of_tokens = dict(zip(names, args[3:], strict=True))
    out = function(*args[:3], segment_ids=ids, **of_tokens)
    return jnp.sum(jnp.sin(out)), out

  run = compiled(jax.value_and_grad(loss, has_aux=True))
  for ids in (PACKED, np.zeros_like(PACKED)):
    live = jnp.asarray(ids != 0)
    (_, clean), wanted = run(given, ids)
    (_, dirty), got = run([only_where(live, x) for x in given], ids)
    np.testing.assert_array_equal(clean[~live], 0)
    np.testing.assert_array_equal(dirty, clean)
    for one, other in zip(wanted, got, strict=True):
      assert np.all(np.isfinite(one))
      np.testing.assert_array_equal(one[~live], 0)
      np.testing.assert_array_equal(one, other)
      assert np.any(one != 0) == np.any(live)


def check_packed_is_separate(function, inputs, per_token=None):
  """Each segment comes out as it does in a row of its own."""
  given = list(inputs) + list((per_token or {}).values())

  @compiled
  def run(given, ids):
    of_tokens = dict(zip(per_token or {}, given[3:], strict=True))
    return function(*given[:3], segment_ids=ids, **of_tokens)

  packed = run(given, PACKED)
  for segment in set(PACKED.flat) - {0}:
    row = int(np.any(PACKED[1] == segment))
    (here,) = np.nonzero(PACKED[row] == segment)
    alone = np.zeros_like(PACKED)
    alone[row, : len(here)] = 1
    moved = [jnp.roll(x, -here[0], axis=1) for x in given]
    np.testing.assert_allclose(
      packed[row, here],
      run(moved, alone)[row, : len(here)],
      rtol=1e-5,
      atol=1e-5,
    )


def check_steps(function, inputs, per_token=None, bias=None, atol=1e-5):
  """Step by step, rows apart by their number, NaN in empty slots."""
  per_token = per_token or {}
  wanted = function(*inputs, bias=bias, **per_token)
  rows = np.arange(BATCH)

  @compiled
  def step(position):
    filled = jnp.arange(LENGTH) <= position[:, None]
    query, key, value = inputs
    row_bias = None
    if bias is not None:
      full = jnp.broadcast_to(bias, (BATCH, HEADS, LENGTH, LENGTH))
      row_bias = full[rows, :, position][:, :, None]
    return function(
      query[rows, position][:, None],
      only_where(filled, key),
      only_where(filled, value),
      bias=row_bias,
      position=position,
      **{name: only_where(filled, x) for name, x in per_token.items()},
    )

  for start in range(LENGTH):
    position = (start + rows) % LENGTH
    np.testing.assert_allclose(
      step(jnp.asarray(position))[:, 0],
      wanted[rows, position],
      rtol=1e-5,
      atol=atol,
    )
