"""Where keys lie in an evicting cache."""

import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x.pruning import eviction


def test_a_new_key_comes_last_and_the_one_there_moves():
  x = np.arange(3 * 4 * 2.0).reshape(3, 4, 2)
  new = -np.ones((3, 2))
  # Two full rows, of which one gives up its last key, and one that fills up.
  slot, last = np.array([1, 3, 2]), np.array([3, 3, 2])
  got = eviction.put(*map(jnp.asarray, (x, new, slot, last)))
  wanted = x.copy()
  wanted[0, 1] = x[0, 3]
  for row in range(3):
    wanted[row, last[row]] = -1
  np.testing.assert_array_equal(got, wanted)


def test_a_prompt_leaves_its_keys_in_order():
  kept = jnp.array([[1, 0, 0, 1, 1, 0], [1, 1, 0, 0, 0, 0]], bool)
  index = eviction.gather_kept(kept, 3)
  assert index[0].tolist() == [0, 3, 4]
  assert index[1, :2].tolist() == [0, 1]


@pytest.mark.parametrize('dtype', ['float32', 'int32', 'bool'])
def test_numbers_are_moved_like_vectors(dtype):
  rng = np.random.default_rng(0)
  x = rng.integers(0, 2 if dtype == 'bool' else 9, (40, 5)).astype(dtype)
  new = rng.integers(0, 2, 40).astype(dtype)
  last = rng.integers(0, 5, 40)
  slot = rng.integers(0, last + 1)
  numbers = eviction.put(*map(jnp.asarray, (x, new, slot, last)))
  vectors = eviction.put(
    *map(jnp.asarray, (x[..., None], new[:, None], slot, last))
  )
  assert numbers.dtype == dtype
  np.testing.assert_array_equal(numbers, vectors[..., 0])


def test_an_infinite_number_stays_where_it_is():
  x = jnp.array([[0.0, jnp.inf, 2.0], [jnp.nan, 1.0, jnp.inf]])
  got = eviction.put(
    x, jnp.array([5.0, 6.0]), jnp.array([0, 1]), jnp.array([2, 2])
  )
  np.testing.assert_array_equal(got, [[2, np.inf, 5], [np.nan, np.inf, 6]])
