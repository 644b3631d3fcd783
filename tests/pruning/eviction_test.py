"""Where keys lie in an evicting cache."""

import jax.numpy as jnp
import numpy as np

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
