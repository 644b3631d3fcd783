"""Which keys a block reads: lists of live ones, or all earlier ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selective_t5x.attention import live_tiles

LENGTH, BLOCK = 1024, 64


def plan(widths=(64, 128, 256)):
  return live_tiles.Plan(LENGTH // BLOCK, BLOCK, 2, widths)


@pytest.mark.parametrize(
  'index,count,width',
  [
    (0, 0, 'all 128'),  # a list would be no shorter
    (1, 64, 'all 128'),
    (8, 64, 64),
    (8, 65, 128),
    (15, 256, 256),
    (15, 257, 'all 1024'),
    (3, 128, 128),
    (3, 129, 'all 256'),
  ],
)
def test_the_narrowest_way_that_holds_the_live_keys_is_taken(
  index, count, width
):
  of = plan()
  names = [*of.widths, *(f'all {prefix}' for prefix in of.prefixes)]
  assert names[int(of.choice(jnp.asarray(index), jnp.asarray(count)))] == width


def test_spans_end_where_the_row_does():
  of = live_tiles.Plan(5, 8, 2, ())
  assert of.prefixes == (16, 32, 40)
  assert [int(of.choice(jnp.asarray(i), 0)) for i in range(5)] == [
    0,
    0,
    1,
    1,
    2,
  ]


@pytest.mark.parametrize('count', [0, 3, 60, 500])
@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
def test_what_is_read_holds_all_live_keys_and_the_own_ones(
  monkeypatch, count, platform
):
  # On CPU loops stand for the condition that other platforms have.
  monkeypatch.setattr(live_tiles.mesh, 'platform', lambda: platform)
  rng = np.random.default_rng(count)
  index = 9
  alive = np.zeros((2, LENGTH), bool)
  for row, number in zip(alive, (count, count // 2), strict=True):
    row[rng.choice(index * BLOCK, number, replace=False)] = True
  x = jnp.asarray(rng.normal(size=(2, 3, LENGTH, 2)), jnp.float32)

  @jax.jit
  def doubled(alive):
    """Adds to each key that is read its own number, and counts its reads."""

    def read(way, x, grown):
      positions = jnp.broadcast_to(way.positions, (2, way.positions.shape[-1]))
      times = jnp.zeros((2, LENGTH)).at[jnp.arange(2)[:, None], positions]
      return times.add(1, mode='drop'), way.add(grown, way.take(x))

    return plan().read(jnp.asarray(index), alive, read, x, x)

  times, twice = doubled(jnp.asarray(alive))
  times = np.asarray(times)
  own = slice(index * BLOCK, (index + 1) * BLOCK)
  assert set(np.unique(times)) <= {0, 1}
  np.testing.assert_array_equal(times[:, own], 1)
  np.testing.assert_array_equal(times[alive], 1)
  np.testing.assert_array_equal(twice, x * (1 + times[:, None, :, None]))
  if count < 257:
    # Nothing else is read.
    assert np.sum(times) == 2 * BLOCK + np.sum(alive)


def test_a_bias_of_all_rows_adds_the_gradients_of_each_list():
  index = 9
  alive = np.zeros((2, LENGTH), bool)
  alive[0, [1, 5]] = alive[1, [5, 6]] = True
  way = live_tiles.Listed(64, jnp.asarray(alive), jnp.asarray(index), BLOCK)
  bias = jnp.zeros((1, 1, LENGTH, 1))
  values = jnp.ones((2, 1, 64 + BLOCK, 1))
  total = np.asarray(way.add(bias, values))[0, 0, :, 0]
  np.testing.assert_array_equal(total[[1, 5, 6, 7]], [1, 2, 1, 0])
  np.testing.assert_array_equal(total[576:640], 2)
