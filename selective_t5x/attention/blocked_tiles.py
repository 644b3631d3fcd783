"""Tiles of blocked attention: one block of queries and the keys of its span.

Shapes: those of `blocked`.
"""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from selective_t5x.attention import mesh
from selective_t5x.attention.selection import spread


class Queries(NamedTuple):
  """Scaled queries in blocks.

  query [T, B, H, D, Q]; selection_query [T, B, G, E, Q], None without
  selection.
  """

  query: jax.Array
  selection_query: jax.Array | None = None


class Keys(NamedTuple):
  """Arrays that are read up to some key; axis 2 is the key.

  key and value [B, H, N, D], selection_key [B, G, N, E], the biases
  [b, h, k, q] with each axis whole or of size 1, levels [B, H, N, 1]. Absent
  arrays are None.
  """

  key: jax.Array
  value: jax.Array
  selection_key: jax.Array | None = None
  bias: jax.Array | None = None
  selection_bias: jax.Array | None = None
  levels: jax.Array | None = None


class Tile:
  """One block of queries and all keys of its span."""

  def __init__(self, index, queries, span, start, constraints):
    """Computes which keys each query may see and may mask.

    Args:
      index: i32[], the number of the block.
      queries: `Queries` of the one block.
      span: `Keys` up to the span's end.
      start: i32[B, N], of `masks.segment_starts`; None for one segment.
      constraints: what selection may not mask.
    """
    self._relu = constraints.relu
    self.query, self.selection_query = queries
    self._span = span
    width, block = span.key.shape[2], self.query.shape[-1]
    self._start = index * block
    keys = jnp.arange(width)[:, None]
    positions = self._start + jnp.arange(block)
    # All are [b, 1, K, Q]; b is 1 where there are no segments.
    self.visible = (keys <= positions)[None, None]
    first = 0
    if start is not None:
      first = self._block_of(start, 1)[:, None, None]
      self.visible &= first <= keys
    self._may_mask = self.visible
    if constraints.protect_self:
      self._may_mask &= keys < positions
    if constraints.protect_bos:
      self._may_mask &= first < keys

  def masking(self, columns):
    """Returns F, where scores equal logits, and column sums after this block.

    Args:
      columns: f32[B, G, K], the summed scores of earlier blocks.
    """
    span = self._span
    logits = dot('bgke,bgeq->bgkq', span.selection_key, self.selection_query)
    if span.selection_bias is not None:
      logits += self._of_bias(span.selection_bias)
    scored = self._may_mask & (logits > 0) if self._relu else self._may_mask
    scores = jnp.where(scored, logits, 0)
    earlier = jnp.triu(ones(scores), 1)
    masking = columns[..., None] + sum_by(scores, earlier)
    return masking, scored, masking[..., -1] + scores[..., -1]

  def logits(self, masking):
    """Returns the masked logits, f32[B, H, K, Q]."""
    logits = dot('bhkd,bhdq->bhkq', self._span.key, self.query)
    if self._span.bias is not None:
      logits += self._of_bias(self._span.bias)
    levels = self._span.levels
    if levels is not None:
      logits += self._block_of(levels, 2).swapaxes(2, 3) - levels
    if masking is not None:
      logits -= spread(masking, logits.shape[1])
    # Finite: a padding row sees no key, and a softmax of -inf alone is NaN.
    return jnp.where(self.visible, logits, jnp.finfo(logits.dtype).min)

  def add_to_bias(self, grad, d_logits):
    """Adds the gradient of this tile's logits to that of a bias."""
    if grad is None:
      return None
    axes = tuple(i for i, size in enumerate(grad.shape) if size == 1)
    part = self._of_bias(grad) + jnp.sum(d_logits, axis=axes, keepdims=True)
    start = self._start if grad.shape[3] > 1 else 0
    return jax.lax.dynamic_update_slice_in_dim(grad, part, start, 3)

  def _of_bias(self, bias):
    return bias if bias.shape[3] == 1 else self._block_of(bias, 3)

  def _block_of(self, x, axis):
    return jax.lax.dynamic_slice_in_dim(
      x, self._start, self.query.shape[-1], axis
    )


def spans(queries, static):
  """Yields each span's blocks, a slice, and the keys that it reads."""
  blocks, block = queries.query.shape[0], queries.query.shape[-1]
  for start in range(0, blocks, static.blocks_a_span):
    stop = min(start + static.blocks_a_span, blocks)
    yield slice(start, stop), stop * block


def numbered(queries, blocks):
  """Returns the numbers, i32[T], and the queries of some blocks."""
  numbers = jnp.arange(blocks.start, blocks.stop)
  return numbers, jax.tree.map(lambda x: x[blocks], queries)


def up_to(width, tree):
  """Slices the first keys of each array, axis 2; an axis of size 1 stays."""
  return jax.tree.map(lambda x: x[:, :, :width], tree)


def put_up_to(width, tree, narrow):
  """Replaces the slice that `up_to` takes."""
  return jax.tree.map(lambda x, y: x.at[:, :, :width].set(y), tree, narrow)


def no_columns(keys):
  """Returns zero column sums, [B, G, N]; None without selection."""
  if keys.selection_key is None:
    return None
  return jnp.zeros(keys.selection_key.shape[:3], keys.key.dtype)


def ones(tile):
  """Returns ones, [Q, Q], for a tile of Q queries."""
  return jnp.ones((tile.shape[-1],) * 2, tile.dtype)


def dot(axes, x, y):
  """Returns an einsum in x's dtype."""
  return jnp.einsum(axes, x, y, preferred_element_type=x.dtype)


def sum_by(tile, triangle):
  """Sums [B, G, K, Q] over the queries that a triangular matrix selects."""
  # Without the barrier XLA:CPU recomputes the tile for each panel of the
  # product, which at 2,048 tokens takes as long as all the rest together.
  return jnp.matmul(
    jax.lax.optimization_barrier(tile),
    triangle,
    # A sum of a thousand scores in bfloat16 would lose the small ones.
    precision=jax.lax.Precision.HIGHEST,
  )


def sum_heads(tile, groups):
  """Sums [B, H, K, Q] over the heads of each of G groups, [B, G, K, Q]."""
  batch, heads, keys, queries = tile.shape
  tile = tile.reshape(batch, groups, heads // groups, keys, queries)
  if mesh.platform() != 'cpu':
    return jnp.sum(tile, axis=2)
  # A reduction along an outer axis is several times slower on XLA:CPU.
  return functools.reduce(
    operator.add, [tile[:, :, i] for i in range(heads // groups)]
  )
