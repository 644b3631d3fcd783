"""Biases in the tiles of blocked attention: arrays, and windows by distance.

An array is sliced. A `Window` has the biases of the keys near a block, which
are the same for every block, so that it is all that is stored: H numbers for
each key near a block and each query of a block, and the same for its gradient.

Shapes: those of `blocked`; S is the number of keys of a window.
"""

import jax
import jax.numpy as jnp

from selective_t5x.attention.blocked_tiles import Keys, block_of
from selective_t5x.attention.distance_bias import Window


def up_to(width, tree):
  """Slices the first keys of each array, axis 2; an axis of size 1 stays.

  Windows stay, too.
  """
  return _map(lambda x: x[:, :, :width], tree)


def put_up_to(width, tree, narrow):
  """Replaces what `up_to` takes."""

  def put(x, y):
    return y if isinstance(x, Window) else x.at[:, :, :width].set(y)

  return jax.tree.map(put, tree, narrow, is_leaf=_is_window)


def _map(function, tree):
  return jax.tree.map(
    lambda x: x if _is_window(x) else function(x), tree, is_leaf=_is_window
  )


def _is_window(x):
  return isinstance(x, Window)


def of_tile(keys: Keys, way, index, block: int) -> Keys:
  """Returns the keys of a tile, whose biases are arrays [b, h, K, Q].

  Args:
    keys: of a whole row, or of as many keys as the way reads.
    way: `live_tiles.Way`, which keys are read.
    index: i32[], the number of the block of queries.
    block: Q.
  """

  def of_block(bias):
    if isinstance(bias, Window):
      return bias.of_keys(way.positions, index * block)
    return None if bias is None else way.take(block_of(bias, index, block, 3))

  taken = jax.tree.map(way.take, keys._replace(bias=None, selection_bias=None))
  return taken._replace(
    bias=of_block(keys.bias), selection_bias=of_block(keys.selection_bias)
  )


def add(d_keys: Keys, d_tile: Keys, way, index) -> Keys:
  """Adds the gradients of a tile to those of all keys.

  Args:
    d_keys: with arrays or windows as biases.
    d_tile: with arrays as biases.
    way: as in `of_tile`.
    index: as in `of_tile`.
  """

  def add_one(total, part):
    if total is None or part is None:
      return total
    if isinstance(total, Window):
      return _add_to_window(total, part, way, index)
    if total.shape[3] == part.shape[3]:
      return way.add(total, part)
    # A bias: the tile has the queries of its block alone.
    block = part.shape[3]
    of_block = way.add(block_of(total, index, block, 3), part)
    return jax.lax.dynamic_update_slice_in_dim(
      total, of_block, index * block, 3
    )

  return Keys(*map(add_one, d_keys, d_tile))


def _add_to_window(window: Window, d_bias, way, index) -> Window:
  """Adds the gradient of a tile's bias, [1 or B, H, K, Q]."""
  _, _, size, block = window.rows.shape
  first = index * block - window.behind
  near = way.rows(d_bias, first + jnp.arange(size))
  positions = way.positions.reshape(-1, 1, way.positions.shape[-1], 1)
  far = jnp.sum(jnp.where(positions < first, d_bias, 0), axis=(0, 2))
  rows = window.rows + jnp.sum(near, axis=0, keepdims=True)
  rows = rows.at[0, :, 0].add(far)
  if size > window.behind + block:
    beyond = jnp.where(positions >= first + size, d_bias, 0)
    rows = rows.at[0, :, -1].add(jnp.sum(beyond, axis=(0, 2)))
  return Window(rows, window.behind)


def largest(bias: jax.Array | Window | None) -> jax.Array | float:
  """Returns the largest bias of each head, [b, h, 1]; 0 without one."""
  if bias is None:
    return 0.0
  rows = bias.rows if isinstance(bias, Window) else bias
  return jnp.max(rows, axis=(2, 3))[..., None]


def of_pairs(bias: jax.Array | Window | None, keys: jax.Array):
  """Returns the bias of each query for one key, [b, h, n] or 0.

  Args:
    bias: an array [b, h, k, q], each axis whole or of size 1; or a Window.
    keys: i32[B or 1, N], the number of the key for each query.
  """
  if bias is None:
    return 0.0
  if isinstance(bias, Window):
    query = jnp.arange(keys.shape[1])
    block = bias.rows.shape[3]
    place = query % block
    number = bias.number(keys, query - place)
    return jnp.moveaxis(bias.rows[0][:, number, place], 1, 0)
  batch, _, length, queries = bias.shape
  index = (
    jnp.arange(batch)[:, None],
    keys if length > 1 else 0,
    jnp.arange(queries)[None],
  )
  # The axis of the heads comes last.
  return bias[index[0], :, index[1], index[2]].swapaxes(1, 2)
