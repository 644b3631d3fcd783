"""Tiles of blocked attention: one block of queries and some keys.

Shapes: those of `blocked`.
"""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from selective_t5x.attention import mesh
from selective_t5x.attention.selection import (
  MEAN,
  Constraints,
  of_heads,
  spread,
)

# On CPU a running sum is taken over so many queries, and then over the parts.
_PART = 32


class Queries(NamedTuple):
  """Scaled queries in blocks.

  query [T, B, H, D, Q]; selection_query [T, B, G, E, Q], None without selection
  and where heads of the model select.
  """

  query: jax.Array
  selection_query: jax.Array | None = None


class Selecting(NamedTuple):
  """Which logits select, as compile-time constants.

  Attributes:
    groups: G; 0 without selection.
    heads: the heads whose logits select, as `selection.of_heads` takes them;
      None where selection has queries and keys of its own.
    constraints: what selection may not mask.
  """

  groups: int
  heads: int | str | tuple[int, ...] | None
  constraints: Constraints

  def of_group(self) -> 'Selecting':
    """Returns the constants of one group of heads by itself."""
    heads = self.heads
    if heads is not None and heads != MEAN:
      # Each group's selecting head is at the same place; alone it is the first.
      heads = heads[0] if isinstance(heads, tuple) else heads
      heads = 0 if isinstance(heads, str) else heads
    return self._replace(groups=min(self.groups, 1), heads=heads)


class Keys(NamedTuple):
  """Arrays of keys; axis 2 is the key.

  key and value [B, H, N, D], selection_key [B, G, N, E], levels [B, H, N, 1],
  the biases [b, h, k, q] with each axis whole or of size 1; of a whole row they
  may be a `distance_bias.Window`. Absent arrays are None.
  """

  key: jax.Array
  value: jax.Array
  selection_key: jax.Array | None = None
  bias: Any = None
  selection_bias: Any = None
  levels: jax.Array | None = None


class Softmax(NamedTuple):
  """A softmax over some of the keys.

  peak [B, H, Q] is the largest logit; total [B, H, Q] and out [B, H, D, Q] are
  sums of exp(logit - peak), and of it times the values.
  """

  peak: jax.Array
  total: jax.Array
  out: jax.Array

  def add(self, other: 'Softmax') -> 'Softmax':
    """Returns the softmax over the keys of both."""
    peak = jnp.maximum(self.peak, other.peak)
    scale, other_scale = jnp.exp(self.peak - peak), jnp.exp(other.peak - peak)
    return Softmax(
      peak,
      self.total * scale + other.total * other_scale,
      self.out * scale[:, :, None] + other.out * other_scale[:, :, None],
    )

  def result(self) -> tuple[jax.Array, jax.Array]:
    """Returns the output, [B, H, D, Q], and the log-sum-exp, [B, H, Q]."""
    return self.out / self.total[:, :, None], self.peak + jnp.log(self.total)


class Visibility(NamedTuple):
  """Which keys each query may see and may mask.

  Both are bool and broadcast to [B, 1, K, Q]; None means every key.
  """

  visible: jax.Array | None
  may_mask: jax.Array | None

  @classmethod
  def causal(cls, keys, queries, start, constraints: Constraints):
    """Returns the Visibility of keys that may come after a query.

    Args:
      keys: i32[K] or i32[B, K], positions.
      queries: i32[Q], positions.
      start: i32[B, Q], where each query's segment starts
        (`masks.segment_starts`); None for one segment.
      constraints: what selection may not mask.
    """
    keys = keys.reshape(-1, 1, keys.shape[-1], 1)
    visible = keys <= queries
    first = 0
    if start is not None:
      first = start[:, None, None]
      visible &= first <= keys
    may_mask = visible
    if constraints.protect_self:
      may_mask &= keys < queries
    if constraints.protect_bos:
      may_mask &= first < keys
    return cls(visible, may_mask)


class Tile:
  """The logits of one block of queries for K keys, and their gradients.

  Attributes:
    scores: f32[B, G, K, Q], the selection scores; None without selection.
    masking: f32[B, G, K, Q], F; None without selection.
  """

  def __init__(
    self,
    queries: Queries,
    keys: Keys,
    columns: jax.Array | None,
    visibility: Visibility,
    selecting: Selecting,
    *,
    query_levels: jax.Array | None = None,
  ):
    """Computes F and the logits.

    Args:
      queries: of one block, without the axis T.
      keys: K keys; the axis q of a bias is the block's queries, or of size 1.
      columns: f32[B, G, K], the summed scores of earlier blocks; None without
        selection.
      visibility: which keys the queries see and mask.
      selecting: which logits select.
      query_levels: f32[B, H, 1, Q], the levels of the queries if the keys have
        levels.
    """
    self._queries, self._keys = queries, keys
    self._visible, may_mask = visibility
    self.scores = self.masking = None
    self._of_heads = None
    if selecting.heads is not None:
      self._of_heads = functools.partial(of_heads, head=selecting.heads)
    logits = dot('bhkd,bhdq->bhkq', keys.key, queries.query)
    if keys.bias is not None:
      logits += keys.bias
    if columns is not None:
      if self._of_heads is not None:
        selects = self._of_heads(logits)
      else:
        selects = dot(
          'bgke,bgeq->bgkq', keys.selection_key, queries.selection_query
        )
        if keys.selection_bias is not None:
          selects += keys.selection_bias
      relu = selecting.constraints.relu
      self._scored = selects > 0 if relu else jnp.ones_like(selects, bool)
      if may_mask is not None:
        self._scored &= may_mask
      self.scores = jnp.where(self._scored, selects, 0)
      self.masking = columns[..., None] + sum_before(self.scores)
    if keys.levels is not None:
      logits += query_levels - keys.levels
    if self.masking is not None:
      logits -= spread(self.masking, logits.shape[1])
    if self._visible is not None:
      # Finite: a padding row sees no key, and a softmax of -inf alone is NaN.
      logits = jnp.where(self._visible, logits, jnp.finfo(logits.dtype).min)
    self._logits = logits

  def softmax(self) -> Softmax:
    """Returns the softmax over the tile's keys."""
    peak = jnp.max(self._logits, axis=2)
    weights = jnp.exp(self._logits - peak[:, :, None])
    out = dot('bhkd,bhkq->bhdq', self._keys.value, weights)
    return Softmax(peak, jnp.sum(weights, axis=2), out)

  def seen(self, tau: float | None) -> jax.Array | None:
    """Returns this tile's part of M, the mean over the G; None without tau.

    Args:
      tau: that of `memory.visible_tokens`.

    Returns:
      f32[B, Q] or None.
    """
    if tau is None:
      return None
    visibility = jnp.where(self.masking < 0, 1, 1 - self.masking / tau)
    visibility = jnp.where(self._counted(tau), visibility, 0)
    return jnp.mean(jnp.sum(visibility, axis=2), axis=1)

  def _counted(self, tau):
    counted = self.masking < tau
    return counted if self._visible is None else self._visible & counted

  def gradients(
    self,
    norm: jax.Array,
    delta: jax.Array,
    d_out: jax.Array,
    d_seen: jax.Array | None,
    d_columns: jax.Array | None,
    tau: float | None,
  ) -> tuple[Queries, Keys, jax.Array | None]:
    """Returns the gradients of the queries, the keys and the columns.

    Args:
      norm: f32[B, H, Q], the log-sum-exp over all keys.
      delta: f32[B, H, Q], the sums of the output times its gradient.
      d_out: f32[B, H, D, Q], the gradient of the output.
      d_seen: f32[B, Q], the gradient of M, or None.
      d_columns: f32[B, G, K], the sums of dF over later blocks; None without
        selection.
      tau: that of M.

    Returns:
      `Queries`, `Keys` without levels, and the sums of dF over this block,
      f32[B, G, K] or None.
    """
    keys, queries = self._keys, self._queries
    weights = jnp.exp(self._logits - norm[:, :, None])
    d_weights = dot('bhkd,bhdq->bhkq', keys.value, d_out)
    # The gradient of a softmax subtracts the sums of weight times gradient.
    d_logits = weights * (d_weights - delta[:, :, None])
    d_scores = d_masking = None
    if self.masking is not None:
      d_scores, d_masking = self._selection_gradients(
        d_logits, d_seen, d_columns, tau
      )
      if self._of_heads is not None:
        (d_selecting,) = jax.linear_transpose(self._of_heads, d_logits)(
          d_scores
        )
        d_logits += d_selecting
    d_queries = Queries(dot('bhkd,bhkq->bhdq', keys.key, d_logits))
    d_keys = Keys(
      key=dot('bhkq,bhdq->bhkd', d_logits, queries.query),
      value=dot('bhkq,bhdq->bhkd', weights, d_out),
      bias=_summed_to(keys.bias, d_logits),
    )
    if self.masking is not None and self._of_heads is None:
      d_queries = d_queries._replace(
        selection_query=dot('bgke,bgkq->bgeq', keys.selection_key, d_scores)
      )
      d_keys = d_keys._replace(
        selection_key=dot('bgkq,bgeq->bgke', d_scores, queries.selection_query),
        selection_bias=_summed_to(keys.selection_bias, d_scores),
      )
    return d_queries, d_keys, d_masking

  def _selection_gradients(self, d_logits, d_seen, d_columns, tau):
    """Returns the gradient of the scores, and the sums of dF over this block.

    They are f32[B, G, K, Q] and f32[B, G, K]; arguments as in `gradients`.
    """
    groups = self.masking.shape[1]
    d_masking = -sum_heads(d_logits, groups)
    if d_seen is not None:
      counted = self._counted(tau) & (self.masking >= 0)
      share = d_seen[:, None, None] / (tau * groups)
      d_masking -= jnp.where(counted, share, 0)
    d_scores = d_columns[..., None] + sum_after(d_masking)
    d_scores = jnp.where(self._scored, d_scores, 0)
    return d_scores, jnp.sum(d_masking, axis=3)


def _summed_to(bias, d_logits):
  """Sums a gradient over the axes that a bias broadcasts; None without one."""
  if bias is None:
    return None
  axes = tuple(
    i
    for i, (size, whole) in enumerate(
      zip(bias.shape, d_logits.shape, strict=True)
    )
    if size == 1 < whole
  )
  return jnp.sum(d_logits, axis=axes, keepdims=True)


def no_columns(keys, selecting):
  """Returns zero column sums, [B, G, N]; None without selection."""
  if not selecting.groups:
    return None
  batch, _, length, _ = keys.key.shape
  return jnp.zeros((batch, selecting.groups, length), keys.key.dtype)


def numbers_of(queries: Queries, first: int = 0) -> jax.Array:
  """Returns the numbers of consecutive blocks, i32[T].

  Of scanned layers, JAX computes what depends on no layer once, before them all
  (`jax.lax.scan` under `jax.grad`), which would be the masks of all blocks, H x
  N x N of them. So the numbers depend on the queries, though not their values.

  Args:
    queries: of these blocks.
    first: the number of the first one.
  """
  numbers = first + jnp.arange(queries.query.shape[0])
  numbers, _ = jax.lax.optimization_barrier(
    (numbers, jax.lax.stop_gradient(queries.query[:1, :1, :1, :1, :1]))
  )
  return numbers


def block_of(x, index, block, axis):
  """Slices a block from an axis; an axis of size 1 stays whole."""
  if x.shape[axis] == 1:
    return x
  return jax.lax.dynamic_slice_in_dim(x, index * block, block, axis)


def dot(axes, x, y):
  """Returns an einsum in x's dtype."""
  return jnp.einsum(axes, x, y, preferred_element_type=x.dtype)


def sum_before(tile: jax.Array) -> jax.Array:
  """Sums [B, G, K, Q] over all earlier queries, of each query."""
  return _running_sum(tile, jnp.triu, 1)


def sum_after(tile: jax.Array) -> jax.Array:
  """Sums [B, G, K, Q] over all later queries, of each query."""
  return _running_sum(tile, jnp.tril, -1)


def _running_sum(tile, triangle, diagonal):
  """Sums over the queries that a triangular matrix selects."""
  # Without the barrier XLA:CPU recomputes the tile for each panel of the
  # product, which at 2,048 tokens takes as long as all the rest together.
  tile = jax.lax.optimization_barrier(tile)

  def product(x):
    ones = triangle(jnp.ones((x.shape[-1],) * 2, x.dtype), diagonal)
    # A sum of a thousand scores in bfloat16 would lose the small ones.
    return jnp.matmul(x, ones, precision=jax.lax.Precision.HIGHEST)

  size = tile.shape[-1]
  if mesh.platform() != 'cpu' or size <= _PART or size % _PART:
    return product(tile)
  # A CPU has no unit for large products: sums of parts, then of what is before
  # or after each part, take half the time.
  parts = tile.reshape(*tile.shape[:-1], -1, _PART)
  others = product(jnp.sum(parts, axis=-1))
  return (product(parts) + others[..., None]).reshape(tile.shape)


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
