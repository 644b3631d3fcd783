"""Exact selective attention in blocks of queries: pure JAX, every backend.

F is a running sum over earlier queries, so going through the query blocks in
order only the column sums of what came before are needed, c [B, G, N]. Within
a block F is c plus an exclusive running sum down the block's queries, a product
with a strictly triangular matrix. Backward, the blocks are taken from the last
to the first: dF is minus the sum of dA over the heads, and a score has the sum
of dF over all later queries as its gradient, again column sums and a product.

Saved for the backward pass: the output, one log-sum-exp a query and head, and c
of every block, O(N * N / block). All that is N x N is computed again, one block
of queries at a time, so live memory is O(N * block). With no selection this is
ordinary blocked attention.

Blocks are run in spans: one loop a span over its blocks, all of which read the
keys up to the span's end. Few spans keep the program short, many skip more of
what lies after a query. The loops also keep XLA from holding the forward pass's
tiles for the backward pass, instead of computing them again. On CPU rows of up
to 512 tokens have a span for each block, without loops: their tiles are small
enough to hold, which saves up to a quarter of the time.

Tiles are [B, H, K, Q], keys before queries: products with triangular matrices
and the sums of a softmax then run along contiguous memory.

Shapes: B batch, N length, H heads, D head size, G selection heads of size E, T
blocks of Q queries, K the keys that a span reads.
"""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from selective_t5x.attention import derivatives, masks, mesh, nonfinite
from selective_t5x.attention.selection import (
  ALL,
  Constraints,
  Selection,
  spread,
)

# With S spans (1 + 1 / S) / 2 of the square is computed.
MAX_SPANS = 8
# Tokens of a row whose tiles XLA:CPU may hold.
_SHORT = 512


class _Queries(NamedTuple):
  """The queries, scaled, in blocks.

  query [T, B, H, D, Q]; selection_query [T, B, G, E, Q], None where nothing
  selects.
  """

  query: jax.Array
  selection_query: jax.Array | None = None


class _Keys(NamedTuple):
  """What is read up to some key; keys are axis 2 of each.

  key and value [B, H, N, D], selection_key [B, G, N, E], the biases
  [b, h, k, q] with each axis whole or of size 1, levels [B, H, N, 1]. What
  there is none of is None.
  """

  key: jax.Array
  value: jax.Array
  selection_key: jax.Array | None = None
  bias: jax.Array | None = None
  selection_bias: jax.Array | None = None
  levels: jax.Array | None = None


class _Static(NamedTuple):
  """What is compiled in."""

  memory_tau: float | None
  blocks_a_span: int
  constraints: Constraints


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  selection: Selection | None,
  scale: float,
  bias: jax.Array | None,
  segment_ids: jax.Array | None,
  memory_tau: float | None,
  levels: jax.Array | None = None,
  block: int | None = None,
) -> tuple[jax.Array, jax.Array | None]:
  """Causal attention, under selection where something selects.

  Args:
    query: [B, N, H, D].
    key: [B, N, H, D].
    value: [B, N, H, D].
    selection: with G dividing H; None for plain causal attention.
    scale: multiplies the logits.
    bias: added to the logits; broadcasts to [B, H, N, N]; or None.
    segment_ids: i32[B, N], 0 for padding; None for one segment.
    memory_tau: positive; None without M.
    levels: f32[B, N, H], whole numbers: levels_i - levels_j, which is exact, is
      added to the logits; no gradient. None for none.
    block: queries of a block; None for what is fastest.

  Returns:
    (out [B, N, H, D] in value's dtype, M f32[B, N] or None); M is the mean over
    the G. Logits and F are float32 for every dtype but float64.
  """
  batch, length = value.shape[:2]
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  # A short row is one block; 8 is what vector units like.
  block = min(block or _default_block(length), -(-length // 8) * 8)
  blocks = -(-length // block)
  # Keys added at the end come after every query, so that none sees them; what
  # the queries added there see is cut off.
  added = blocks * block - length

  query, key, value, selection, faults = nonfinite.clean_heads(
    query, key, value, selection, live=segment_ids
  )

  def pad(x):
    return jnp.pad(x.astype(dtype), ((0, 0), (0, added), (0, 0), (0, 0)))

  def whole(x):
    return pad(x).transpose(0, 2, 1, 3)

  def in_blocks(x):
    x = pad(x).reshape(batch, blocks, block, *x.shape[2:])
    return x.transpose(1, 0, 3, 4, 2)

  def keys_first(x):
    if x is None:
      return None
    x = x.reshape((1,) * (4 - x.ndim) + x.shape).astype(dtype).swapaxes(2, 3)
    room = [(0, added if size > 1 else 0) for size in x.shape[2:]]
    return jnp.pad(x, [(0, 0), (0, 0), *room])

  def joined(x):
    """[T, B, ..., Q] to [B, N, ...], zero in padding rows."""
    x = jnp.moveaxis(x, (1, -1), (0, 2)).reshape(batch, -1, *x.shape[2:-1])
    return masks.zero_padding(x[:, :length], segment_ids)

  queries = _Queries(in_blocks(query) * scale)
  keys = _Keys(whole(key), whole(value), bias=keys_first(bias))
  if levels is not None:
    levels = jax.lax.stop_gradient(levels).swapaxes(1, 2).astype(dtype)
    levels = jnp.pad(levels, ((0, 0), (0, 0), (0, added)))[..., None]
    keys = keys._replace(levels=levels)
  if selection is not None:
    queries = queries._replace(
      selection_query=in_blocks(selection.query) * selection.scale
    )
    keys = keys._replace(
      selection_key=whole(selection.key),
      selection_bias=keys_first(selection.bias),
    )
  start = padded_start = None
  if segment_ids is not None:
    start = masks.segment_starts(length, segment_ids)
    # After all keys: what is added sees none.
    padded_start = jnp.pad(
      start, ((0, 0), (0, added)), constant_values=length + added
    )
  # A loop of one block is no loop.
  is_short = length <= _SHORT and mesh.platform() == 'cpu'
  least = 1 if is_short else 2
  static = _Static(
    memory_tau,
    max(least, -(-blocks // MAX_SPANS)),
    ALL if selection is None else selection.constraints,
  )
  queries, keys = derivatives.reverse_mode_alone((queries, keys), 'blocked')
  out, seen = _attend(queries, keys, padded_start, static)
  reached, rows = faults.reach(nonfinite.causally(start))
  out = nonfinite.mark(joined(out).astype(value.dtype), reached)
  if seen is not None:
    seen = nonfinite.mark(joined(seen), jnp.any(rows, axis=-1))
  return out, seen


def _default_block(length: int) -> int:
  """Returns the fastest block size: measured on 2 CPU cores."""
  # Several small blocks skip more of what is masked than one large one.
  return 64 if 128 < length <= _SHORT else 128


# Traced once for all layers of a model, compiled as one where it stands alone.
@functools.partial(jax.jit, static_argnums=3)
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(queries, keys, start, static):
  """Returns (out [T, B, H, D, Q], M f32[T, B, Q] or None)."""
  return _forward(queries, keys, start, static)[0]


def _forward(queries, keys, start, static):
  columns = _no_columns(keys)
  results = []
  for blocks, width in _spans(queries, static):
    span = _up_to(width, keys)

    def step(columns, block, span=span):
      tile = _Tile(*block, span, start, static.constraints)
      before, masking, seen = columns, None, None
      if columns is not None:
        masking, _, columns = tile.masking(columns)
        if static.memory_tau is not None:
          counted = tile.visible & (masking < static.memory_tau)
          left = jnp.where(masking < 0, 1, 1 - masking / static.memory_tau)
          left = jnp.where(counted, left, 0)
          seen = jnp.mean(jnp.sum(left, axis=2), axis=1)
      logits = tile.logits(masking)
      peak = jnp.max(logits, axis=2)
      weights = jnp.exp(logits - peak[:, :, None])
      total = jnp.sum(weights, axis=2)
      out = _dot('bhkd,bhkq->bhdq', span.value, weights) / total[:, :, None]
      return columns, (out, peak + jnp.log(total), before, seen)

    narrow, result = jax.lax.scan(
      step, _up_to(width, columns), _numbered(queries, blocks)
    )
    columns = _put_up_to(width, columns, narrow)
    results.append(result)
  outs, norms, befores, seens = zip(*results, strict=True)
  out, norm = jnp.concatenate(outs), jnp.concatenate(norms)
  seen = None if seens[0] is None else jnp.concatenate(seens)
  return (out, seen), (queries, keys, start, out, norm, befores)


def _backward(static, saved, cotangents):
  queries, keys, start, out, norm, befores = saved
  d_out, d_seen = cotangents
  # Sums of weight times its gradient: what the gradient of a softmax takes off.
  delta = jnp.sum(d_out * out, axis=3)
  # Both grow from the last block to the first: the keys' gradients, and the
  # column sums of dF.
  grown = jax.tree.map(jnp.zeros_like, keys), _no_columns(keys)
  d_queries = []
  spans = list(zip(_spans(queries, static), befores, strict=True))
  for (blocks, width), before in reversed(spans):
    span = _up_to(width, keys)

    def step(grown, xs, span=span):
      d_keys, d_columns = grown
      block, before, norm, delta, d_out, d_seen = xs
      tile = _Tile(*block, span, start, static.constraints)
      masking = scored = None
      if before is not None:
        masking, scored, _ = tile.masking(before)
      weights = jnp.exp(tile.logits(masking) - norm[:, :, None])
      d_weights = _dot('bhkd,bhdq->bhkq', span.value, d_out)
      d_logits = weights * (d_weights - delta[:, :, None])
      d_query = _dot('bhkd,bhkq->bhdq', span.key, d_logits)
      d_keys = d_keys._replace(
        key=d_keys.key + _dot('bhkq,bhdq->bhkd', d_logits, tile.query),
        value=d_keys.value + _dot('bhkq,bhdq->bhkd', weights, d_out),
        bias=tile.add_to_bias(d_keys.bias, d_logits),
      )
      if masking is None:
        return (d_keys, None), _Queries(d_query)
      d_masking = -_sum_heads(d_logits, masking.shape[1])
      if d_seen is not None:
        counted = tile.visible & (masking < static.memory_tau) & (masking >= 0)
        share = d_seen[:, None, None] / (static.memory_tau * masking.shape[1])
        d_masking -= jnp.where(counted, share, 0)
      later = jnp.tril(_ones(d_masking), -1)
      d_scores = d_columns[..., None] + _sum_by(d_masking, later)
      d_scores = jnp.where(scored, d_scores, 0)
      d_keys = d_keys._replace(
        selection_key=d_keys.selection_key
        + _dot('bgkq,bgeq->bgke', d_scores, tile.selection_query),
        selection_bias=tile.add_to_bias(d_keys.selection_bias, d_scores),
      )
      return (d_keys, d_columns + jnp.sum(d_masking, axis=3)), _Queries(
        d_query, _dot('bgke,bgkq->bgeq', span.selection_key, d_scores)
      )

    of_blocks = jax.tree.map(
      lambda x, blocks=blocks: x[blocks], (norm, delta, d_out, d_seen)
    )
    narrow, d_query = jax.lax.scan(
      step,
      _up_to(width, grown),
      (_numbered(queries, blocks), before, *of_blocks),
      reverse=True,
    )
    grown = _put_up_to(width, grown, narrow)
    d_queries.append(d_query)
  d_queries = jax.tree.map(lambda *x: jnp.concatenate(x), *d_queries[::-1])
  return d_queries, grown[0], None


_attend.__wrapped__.defvjp(_forward, _backward)


class _Tile:
  """One block of queries and all keys of its span."""

  def __init__(self, index, queries, span, start, constraints):
    """Finds who may see, and who may mask, whom.

    Args:
      index: i32[], the number of the block.
      queries: `_Queries` of the one block.
      span: `_Keys` up to the span's end.
      start: i32[B, N], of `masks.segment_starts`; None for one segment.
      constraints: what is not masked.
    """
    self._relu = constraints.relu
    self.query, self.selection_query = queries
    self._span = span
    width, block = span.key.shape[2], self.query.shape[-1]
    self._start = index * block
    keys = jnp.arange(width)[:, None]
    positions = self._start + jnp.arange(block)
    # All [b, 1, K, Q], b is 1 where there are no segments.
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
    """Returns (F, where scores are the logits, column sums after this block).

    Args:
      columns: f32[B, G, K], the scores of earlier blocks summed.
    """
    span = self._span
    logits = _dot('bgke,bgeq->bgkq', span.selection_key, self.selection_query)
    if span.selection_bias is not None:
      logits += self._of_bias(span.selection_bias)
    scored = self._may_mask & (logits > 0) if self._relu else self._may_mask
    scores = jnp.where(scored, logits, 0)
    earlier = jnp.triu(_ones(scores), 1)
    masking = columns[..., None] + _sum_by(scores, earlier)
    return masking, scored, masking[..., -1] + scores[..., -1]

  def logits(self, masking):
    """Returns what the softmax is of, f32[B, H, K, Q]."""
    logits = _dot('bhkd,bhdq->bhkq', self._span.key, self.query)
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


def _spans(queries, static):
  """Yields each span's blocks, a slice, and the keys that it reads."""
  blocks, block = queries.query.shape[0], queries.query.shape[-1]
  for start in range(0, blocks, static.blocks_a_span):
    stop = min(start + static.blocks_a_span, blocks)
    yield slice(start, stop), stop * block


def _numbered(queries, blocks):
  """Returns (i32[T], queries) of some blocks."""
  numbers = jnp.arange(blocks.start, blocks.stop)
  return numbers, jax.tree.map(lambda x: x[blocks], queries)


def _up_to(width, tree):
  """Cuts each array's keys, axis 2; an axis of size 1 stays."""
  return jax.tree.map(lambda x: x[:, :, :width], tree)


def _put_up_to(width, tree, narrow):
  """Replaces what `_up_to` cuts out."""
  return jax.tree.map(lambda x, y: x.at[:, :, :width].set(y), tree, narrow)


def _no_columns(keys):
  """Returns column sums of nothing, [B, G, N]; None without selection."""
  if keys.selection_key is None:
    return None
  return jnp.zeros(keys.selection_key.shape[:3], keys.key.dtype)


def _ones(tile):
  """Returns ones, [Q, Q], for a tile of Q queries."""
  return jnp.ones((tile.shape[-1],) * 2, tile.dtype)


def _dot(axes, x, y):
  return jnp.einsum(axes, x, y, preferred_element_type=x.dtype)


def _sum_by(tile, triangle):
  """Sums [B, G, K, Q] over the queries that a triangular matrix names."""
  # Without the barrier XLA:CPU computes what the tile comes from again for each
  # panel of the product: at 2,048 tokens as slow as all the rest together.
  return jnp.matmul(
    jax.lax.optimization_barrier(tile),
    triangle,
    # A sum of a thousand scores in bfloat16 would lose the small ones.
    precision=jax.lax.Precision.HIGHEST,
  )


def _sum_heads(tile, groups):
  """Sums [B, H, K, Q] over the heads of each of G groups, [B, G, K, Q]."""
  batch, heads, keys, queries = tile.shape
  tile = tile.reshape(batch, groups, heads // groups, keys, queries)
  if mesh.platform() != 'cpu':
    return jnp.sum(tile, axis=2)
  # XLA:CPU is several times slower at a reduction along an outer axis.
  return functools.reduce(
    operator.add, [tile[:, :, i] for i in range(heads // groups)]
  )
