"""The computation of the GPU kernels in one tile of queries and keys.

All arrays are values inside a kernel: Q rows of a query block, K columns of a
key block. A tile is [Q, K], or [K, Q] in kernels whose programs own keys:
`query_axis` says where its queries are. Logits and F are in units of log(2)
where they are subtracted from each other, since GPUs compute 2 ** x.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from selective_t5x.attention.fused import FAR, product
from selective_t5x.attention.gpu.blocks import Inputs
from selective_t5x.attention.gpu.plan import Plan

LOG2_E = math.log2(math.e)


class Tile(NamedTuple):
  """The visibility and the selection of a tile, each [Q, K] or [K, Q].

  Attributes:
    visible: bool.
    scores: f32, S; None without selection.
    masking: f32, F; None without selection.
    taken_off: f32, subtracted from the logits in units of log(2): F where
      visible, else FAR.
  """

  visible: jax.Array
  scores: jax.Array | None
  masking: jax.Array | None
  taken_off: jax.Array


def of_query(x, query_axis):
  """Returns [Q] as an array that broadcasts over a tile's keys."""
  return jnp.expand_dims(x, 1 - query_axis)


def of_key(x, query_axis):
  """Returns [K] as an array that broadcasts over a tile's queries."""
  return jnp.expand_dims(x, query_axis)


def product_of(queries, keys, query_axis):
  """Returns <query, key> of [Q, D] and [K, D] for a tile, in float32."""
  pair = (queries, keys) if query_axis == 0 else (keys, queries)
  return product(*pair, transpose_b=True)


class Columns(NamedTuple):
  """The keys of a tile.

  Attributes:
    slots: how refs are indexed to read them, a slice or i32[K].
    first: i32[], the position of the first one, where they lie in order and
      queries may see all; else i32[K], the position of each, N for one that no
      query may see.
    number: K.
  """

  slots: Any
  first: jax.Array
  number: int

  @classmethod
  def in_order(cls, first, number: int) -> 'Columns':
    """Returns keys that lie in order, from `first`, i32[], on."""
    return cls(pl.ds(first, number), first, number)

  @classmethod
  def by_index(cls, keys, seen, length: int) -> 'Columns':
    """Returns keys by index.

    Args:
      keys: i32[K], which rows are read.
      seen: bool[K], which of them a query may see.
      length: N.
    """
    return cls(keys, jnp.where(seen, keys, length), keys.shape[0])

  def where(self, seen, length: int) -> 'Columns':
    """Returns the same keys, of which a query may see some.

    Args:
      seen: bool[K], which of them.
      length: N.
    """
    return self._replace(first=jnp.where(seen, self.positions(), length))

  @property
  def listed(self) -> bool:
    """Whether they are read by index."""
    return not isinstance(self.slots, pl.Slice)

  def positions(self):
    """Returns i32[K]."""
    if jnp.ndim(self.first):
      return self.first
    return self.first + jnp.arange(self.number, dtype=jnp.int32)


class Place(NamedTuple):
  """Where a tile lies.

  Attributes:
    row: i32[], its first query.
    rows: Q.
    columns: its keys.
    start: i32[Q], where the segment of each query starts; None for 0.
    query_axis: 0 for a tile [Q, K], 1 for [K, Q].
    ids: i32[Q] and i32[K], the segments in a bidirectional call; else None.
  """

  row: jax.Array
  rows: int
  columns: Columns
  start: jax.Array | None
  query_axis: int
  ids: tuple[jax.Array, jax.Array] | None = None

  def visible(self):
    """Returns which keys each query sees, bool."""
    if self.ids is not None:
      query = of_query(self.ids[0], self.query_axis)
      return (query == of_key(self.ids[1], self.query_axis)) & (query != 0)
    row, column, first = self.positions()
    # A segment is contiguous, so its start is enough.
    return (first <= column) & (column <= row)

  def distance(self):
    """Returns how far each key is before its query; below 0 where after it."""
    row, column, _ = self.positions()
    return row - column

  def positions(self):
    """Returns row, column and the segment's start of a tile's elements."""
    row = self.row + jnp.arange(self.rows, dtype=jnp.int32)
    column = self.columns.positions()
    first = 0 if self.start is None else of_query(self.start, self.query_axis)
    return (
      of_query(row, self.query_axis),
      of_key(column, self.query_axis),
      first,
    )


def place_of(
  plan: Plan, inputs: Inputs, i, columns: Columns, query_axis: int
) -> Place:
  """Returns where the tile of query block i and some keys lies."""
  row, size = i * plan.block.query, plan.block.query
  rows = pl.ds(row, size)
  ids = None
  if plan.full is not None:
    ids = (inputs.query_ids[rows], inputs.key_ids[columns.slots])
  start = inputs.start[rows] if plan.packed else None
  return Place(row, size, columns, start, query_axis, ids)


def bias_of(plan: Plan, place: Place, windows, head: int, near: bool):
  """Returns the biases of a tile's logits, f32.

  Args:
    plan: the plan of the call.
    place: where the tile lies.
    windows: a ref of f32[heads, Q, W]; f32[heads, W, Q] for tiles [K, Q] and
      for keys by index, whose loads are then whole rows; None without biases.
    head: the number of the head.
    near: see `plan.Range`.

  Returns:
    A tile where it is near, one number where it is far, None without biases.
  """
  if windows is None:
    return None
  columns = place.columns
  # The first key is the farthest one for the last query, and the last key, in
  # a bidirectional call, for the first query.
  rows: Any = place.rows - 1
  keys: Any = 0
  shift = plan.before - place.row
  if plan.full is not None and not near:
    earlier = columns.first < place.row
    rows = jnp.where(earlier, rows, 0)
    keys = jnp.where(earlier, keys, plan.window - 1)
  if near and columns.listed:
    rows = pl.ds(0, place.rows)
    # Keys before a window are `behind` or farther away from all queries.
    keys = jnp.clip(columns.slots + shift, 0, plan.window - 1)
  elif near:
    rows = pl.ds(0, place.rows)
    keys = pl.ds(columns.slots.start + shift, columns.number)
  if place.query_axis == 0 and not columns.listed:
    return windows[head, rows, keys]
  biases = windows[head, keys, rows]
  return biases.T if near and place.query_axis == 0 else biases


def beyond(plan: Plan, place: Place, x, near: bool):
  """Returns the tile x with zeros where a key is nearer than `behind`."""
  if not near and plan.full is None:
    return x
  return jnp.where(place.distance() >= plan.behind, x, 0.0)


def selection_scores(plan: Plan, place: Place, queries, keys, bias=None):
  """Returns S of a tile, f32.

  Args:
    plan: the plan of the call.
    place: where the tile lies.
    queries: [Q, E], those of selection.
    keys: [K, E], those of selection.
    bias: that of the selecting head, see `bias_of`.
  """
  row, column, first = place.positions()
  logits = plan.selection_scale * product_of(queries, keys, place.query_axis)
  if bias is not None:
    logits += bias
  may_mask = (first < column) & (column < row)
  return jnp.where(may_mask, jnp.maximum(logits, 0.0), 0.0)


def make_tile(plan: Plan, place: Place, select, sums, bias=None) -> Tile:
  """Computes a tile's selection.

  Args:
    plan: the plan of the call.
    place: where the tile lies.
    select: queries [Q, E] and keys [K, E] of selection; None without it.
    sums: f32[K], the column sums of S over earlier query blocks; None without
      selection.
    bias: that of the selecting head, see `bias_of`.
  """
  query_axis = place.query_axis
  visible = place.visible()
  if not plan.selects:
    return Tile(visible, None, None, jnp.where(visible, 0.0, FAR))
  queries, keys = select
  scores = selection_scores(plan, place, queries, keys, bias)
  # A query's own score acts on later queries alone.
  above = jnp.cumsum(scores, axis=query_axis) - scores
  masking = of_key(sums, query_axis) + above
  taken_off = jnp.where(visible, LOG2_E * masking, FAR)
  return Tile(visible, scores, masking, taken_off)


def head_logits(plan: Plan, tile: Tile, query, key, query_axis, bias=None):
  """Returns f32, the logits of a head in units of log(2), less F and mask."""
  logits = product_of(query, key, query_axis)
  logits = (plan.scale * LOG2_E) * logits - tile.taken_off
  if bias is None:
    return logits
  # An infinite bias of a key that is not visible must not matter.
  return jnp.where(tile.visible, logits + LOG2_E * bias, -FAR)


def head_gradients(
  plan: Plan, tile: Tile, query, key, value, grad, lse, delta, query_axis, bias
):
  """Recomputes one head's weights and differentiates through its softmax.

  Args:
    plan: the plan of the call.
    tile: the result of `make_tile`.
    query: [Q, D].
    key: [K, D].
    value: [K, D].
    grad: [Q, D], the cotangent of the output.
    lse: f32[Q], the log2 of the sum of the exponentials of each row.
    delta: f32[Q], the product of the output and its cotangent.
    query_axis: 0 or 1.
    bias: see `bias_of`.

  Returns:
    The weights and the gradient of the logits, f32 each.
  """
  logits = head_logits(plan, tile, query, key, query_axis, bias)
  weights = jnp.exp2(logits - of_query(lse, query_axis))
  slope = product_of(grad, value, query_axis) - of_query(delta, query_axis)
  return weights, weights * slope


def selection_gradient(
  plan: Plan, tile: Tile, logit_grads, memory_grad, later, query_axis
):
  """Carries the gradient from F to the selection logits.

  Args:
    plan: the plan of the call.
    tile: the result of `make_tile`.
    logit_grads: f32, the gradients of all heads' logits, summed.
    memory_grad: f32[Q], the cotangent of M; None without M.
    later: f32[K], the gradient of F summed over later query blocks.
    query_axis: 0 or 1.

  Returns:
    f32, the gradient of the selection logits, and `later` including this tile.
  """
  grad = -logit_grads
  if memory_grad is not None:
    counted = tile.visible & (tile.masking < plan.memory_tau)
    of_memory = of_query(memory_grad, query_axis) / plan.memory_tau
    grad -= jnp.where(counted, of_memory, 0.0)
  total = jnp.sum(grad, axis=query_axis)
  # The sum over the later queries of this block, and all further ones.
  below = of_key(later + total, query_axis) - jnp.cumsum(grad, axis=query_axis)
  grad = jnp.where(tile.scores > 0, below, 0.0)
  return grad, later + total
