"""Attention to whole segments in blocks of queries: encoders, cross-attention.

A block of queries reads all keys in one tile. The forward pass saves the output
and one log-sum-exp per query and head, and the backward pass recomputes the
tiles, so live memory is O(N * block). Source: Dao, arXiv 2307.08691, for the
softmax's gradient; biases by distance as in `blocked_biases`, ours.

Shapes: B batch, Q queries, N keys, H heads, D head size; T blocks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from selective_t5x.attention import (
  blocked_biases,
  derivatives,
  masks,
  nonfinite,
)
from selective_t5x.attention.blocked_tiles import (
  Keys,
  Queries,
  Selecting,
  Tile,
  Visibility,
  numbers_of,
)
from selective_t5x.attention.distance_bias import DistanceBias, four_axes
from selective_t5x.attention.live_tiles import Prefix
from selective_t5x.attention.selection import ALL

BLOCK = 128
_NOTHING_SELECTS = Selecting(0, None, ALL)


class _Ids(NamedTuple):
  """Segments of the queries in blocks, i32[T, B, Q], and of keys, i32[B, N]."""

  queries: jax.Array
  keys: jax.Array

  def visible(self, index) -> jax.Array:
    """Returns which keys a block's queries see, bool[B, N, Q]."""
    queries = self.queries[index][:, None]
    return (self.keys[:, :, None] == queries) & (queries != 0)


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  scale: float,
  bias: jax.Array | DistanceBias | None,
  query_ids: jax.Array,
  key_ids: jax.Array,
  block: int = BLOCK,
) -> jax.Array:
  """Attention to all keys of a query's segment.

  Args:
    query: [B, Q, H, D].
    key: [B, N, H, D].
    value: [B, N, H, D].
    scale: multiplies the logits.
    bias: added to the logits; broadcasts to [B, H, Q, N], or a DistanceBias, of
      which no array of Q x N is made; or None.
    query_ids: i32[B, Q], segments, 0 for padding.
    key_ids: i32[B, N], segments, 0 for padding.
    block: queries per block.

  Returns:
    [B, Q, H, D] in value's dtype; zero in padding rows and where a query's
    segment has no key. Logits are float32 for every dtype but float64.
  """
  batch, length = query.shape[:2]
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  block = min(block, -(-length // 8) * 8)
  blocks = -(-length // block)
  padding = blocks * block - length
  (query,), query_faults = nonfinite.clean(query, live=query_ids)
  (key, value), key_faults = nonfinite.clean(key, value, live=key_ids)

  def in_blocks(x):
    """Cuts [B, Q, ...] into [T, B, Q, ...]."""
    x = jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2)))
    return jnp.moveaxis(x.reshape(batch, blocks, block, *x.shape[2:]), 1, 0)

  def joined(x):
    """Joins [T, B, Q, ...] to [B, Q, ...]."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(batch, -1, *x.shape[3:])[:, :length]

  def keys_first(x):
    if x is None:
      return None
    if isinstance(x, DistanceBias):
      x = x.map(lambda values: values.astype(dtype))
      longest = max(length, key.shape[1])
      return x.within(longest, causal=False).window(block)
    x = four_axes(x).astype(dtype).swapaxes(2, 3)
    room = padding if x.shape[3] > 1 else 0
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, room)))

  ids = _Ids(in_blocks(query_ids), key_ids)
  queries = Queries(
    in_blocks(query.astype(dtype) * scale).transpose(0, 1, 3, 4, 2)
  )
  keys = Keys(
    key.astype(dtype).swapaxes(1, 2),
    value.astype(dtype).swapaxes(1, 2),
    bias=keys_first(bias),
  )
  queries, keys = derivatives.reverse_mode_alone((queries, keys), 'blocked')
  out = joined(_attend(queries, keys, ids).transpose(0, 1, 4, 2, 3))

  def sees(faults, _):
    def of_block(index):
      visible = ids.visible(index).swapaxes(1, 2)
      return nonfinite.where_visible(visible)(faults, False)

    return joined(jax.lax.map(of_block, numbers_of(queries)))

  some_key = sees(jnp.ones((*key_ids.shape, 1), bool), False)[..., 0]
  out = masks.zero_padding(out.astype(value.dtype), some_key)
  reached, _ = nonfinite.Faults(query_faults, key_faults).reach(sees)
  return nonfinite.mark(out, reached)


# jit traces it once for all layers of a model.
@jax.jit
@jax.custom_vjp
def _attend(queries, keys, ids):
  """Returns the outputs, [T, B, H, D, Q]."""
  return _forward(queries, keys, ids)[0]


def _forward(queries, keys, ids):
  def step(_, block):
    index, rows = block
    tile, _ = _tile(index, rows, keys, ids)
    return None, tile.softmax().result()

  _, (out, norm) = jax.lax.scan(step, None, _numbered(queries))
  return out, (queries, keys, ids, out, norm)


def _backward(saved, d_out):
  queries, keys, ids, out, norm = saved
  delta = jnp.sum(d_out * out, axis=3)

  def step(d_keys, xs):
    (index, rows), norm, delta, d_out = xs
    tile, way = _tile(index, rows, keys, ids)
    d_queries, d_tile, _ = tile.gradients(norm, delta, d_out, None, None, None)
    return blocked_biases.add(d_keys, d_tile, way, index), d_queries

  d_keys, d_queries = jax.lax.scan(
    step,
    jax.tree.map(jnp.zeros_like, keys),
    (_numbered(queries), norm, delta, d_out),
  )
  return d_queries, d_keys, None


_attend.__wrapped__.defvjp(_forward, _backward)  # type: ignore[attr-defined]


def _numbered(queries):
  return numbers_of(queries), queries


def _tile(index, queries, keys, ids):
  """Returns the Tile of a block, and the way it reads the keys."""
  way = Prefix(keys.key.shape[2])
  block = queries.query.shape[-1]
  tile = Tile(
    queries,
    blocked_biases.of_tile(keys, way, index, block),
    None,
    Visibility(ids.visible(index)[:, None], None),
    _NOTHING_SELECTS,
  )
  return tile, way
