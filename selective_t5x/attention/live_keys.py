"""Which keys may still matter: a bound on what a dead key could weigh.

With the relu a score is zero or more, so F_ij only grows with the query i. Once
it exceeds all that the logit A_ij can reach, key j stays masked for good. For
query i, key j and head h the logit is A_ij - F_ij. Let

  U_j = max over later queries i of |q_i| * |k_j| * scale, plus the largest bias
  L_i = max(A_ii, A_i,first), a part of the softmax of query i, since F is 0 for
        its own token and for the first one of its segment.

Then log-sum-exp_i >= L_i, and the weight of key j is at most
exp(U_j - F_ij - L_i). Key j is dead from query i on if, for all heads that read
this F,

  F_ij > U_j - min over i' >= i of L_i' + log(N / eps).

Its weight is then at most eps / N for query i and all later ones, and that of
all dead keys together is at most eps. Source: ours; docs/forgetting.md has the
proof.

Shapes: those of `blocked`, with one selecting head.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging

from selective_t5x.attention import blocked_biases
from selective_t5x.attention.blocked_tiles import Keys, Queries

# A weight of this size is lost in an output of the dtype.
_ROUNDING = {'bfloat16': 2.0**-9, 'float16': 2.0**-12, 'float64': 2.0**-53}


def lost_weight(forget_below: float | None, dtype: Any) -> float:
  """Returns eps, the rounding of the values' dtype for None."""
  if forget_below is None:
    return _ROUNDING.get(jnp.dtype(dtype).name, 2.0**-24)
  return forget_below


@functools.cache
def log_that_none_is_dropped(why: str) -> None:
  """Logs once why a call drops no key."""
  logging.info('forget_below: nothing is dropped, since %s', why)


class Bound(NamedTuple):
  """What bounds the logits of the queries from each block on.

  Attributes:
    query: f32[T, B, H], the largest norm of the scaled queries.
    key: f32[B, H, N], the norms of the keys.
    bias: f32[b, h, 1], the largest bias at any distance; 0 without one.
    least: f32[T, B, H], the smallest L.
    first: i32[T, B or 1], the first key that any of these queries sees.
    slack: log(N / eps).
    floor: a key is alive while F is at most this.
  """

  query: jax.Array
  key: jax.Array
  bias: jax.Array | float
  least: jax.Array
  first: jax.Array
  slack: float
  floor: float

  def alive(self, index: jax.Array, masking: jax.Array) -> jax.Array:
    """Returns which keys before a block may still matter to it or later.

    Args:
      index: i32[], the number of the block.
      masking: f32[B, N], F for the first query of the block.

    Returns:
      bool[B, N].
    """
    length = masking.shape[1]
    first_query = index * (length // self.query.shape[0])
    # A limit that is not a number keeps its key.
    dead = masking > self.limit(index)
    return ~dead & (jnp.arange(length) < first_query)

  def limit(self, index: jax.Array) -> jax.Array:
    """Returns what F of the first query of a block exceeds for dead keys.

    It is below every F for the keys of earlier segments, which no query sees.

    Args:
      index: i32[], the number of the block; or i32[T] for those of several.

    Returns:
      f32[B, N], or f32[T, B, N].
    """
    # XLA takes this maximum without an array of all heads.
    highest = self.query[index][..., None] * self.key + self.bias
    limit = jnp.max(highest - self.least[index][..., None], axis=-2)
    limit = jnp.maximum(limit + self.slack, self.floor)
    keys = jnp.arange(limit.shape[-1])
    return jnp.where(keys >= self.first[index][..., None], limit, -1.0)


def bound(
  queries: Queries,
  keys: Keys,
  start: jax.Array | None,
  *,
  forget_below: float,
  protect_bos: bool,
  floor: float = 0.0,
) -> Bound:
  """Returns the Bound of a row.

  Args:
    queries: of all blocks.
    keys: of the row.
    start: i32[B, N], as `masks.segment_starts` returns it; None for one
      segment.
    forget_below: eps, the limit of the weight of all dead keys; positive.
    protect_bos: whether F is 0 for the first token of a segment.
    floor: a key is alive while F is at most this.
  """
  blocks, batch, heads, size, block = queries.query.shape
  length = blocks * block
  # [B, H, N, D]
  query = queries.query.transpose(1, 2, 0, 4, 3)
  query = query.reshape(batch, heads, length, size)
  slots = jnp.arange(length)
  starts = jnp.zeros((1, length), jnp.int32) if start is None else start
  least = jnp.sum(query * keys.key, axis=3)
  least = least + blocked_biases.of_pairs(keys.bias, slots[None])
  if protect_bos:
    rows = jnp.minimum(starts, length - 1)
    first = keys.key[:, :, :1]
    if start is not None:
      first = jnp.take_along_axis(keys.key, rows[:, None, :, None], axis=2)
    first = jnp.sum(query * first, axis=3)
    first = first + blocked_biases.of_pairs(keys.bias, rows)
    least = jnp.maximum(least, first)
  # Padding sees nothing.
  least = jnp.where((starts < length)[:, None], least, jnp.inf)

  def from_block_on(reduce, accumulate, x):
    """Reduces over a block and all later ones: [., N] to [T, .]."""
    x = reduce(x.reshape(*x.shape[:-1], blocks, block), axis=-1)
    return jnp.moveaxis(accumulate(x, axis=x.ndim - 1, reverse=True), -1, 0)

  return Bound(
    query=from_block_on(
      jnp.max, jax.lax.cummax, jnp.linalg.norm(query, axis=3)
    ),
    key=jnp.linalg.norm(keys.key, axis=3),
    bias=blocked_biases.largest(keys.bias),
    least=from_block_on(jnp.min, jax.lax.cummin, least),
    first=from_block_on(jnp.min, jax.lax.cummin, starts),
    slack=math.log(length / forget_below),
    floor=floor,
  )


def listed(alive: jax.Array, width: int) -> jax.Array:
  """Lists the keys that are alive.

  Args:
    alive: bool[B, N], at most W of a row.
    width: W.

  Returns:
    i32[B, W], the numbers of the keys in ascending order, then N.
  """
  rank = jnp.cumsum(alive, axis=1, dtype=jnp.int32)
  # On CPU a search is several times faster than a sort or a scatter.
  search = jax.vmap(lambda row: jnp.searchsorted(row, jnp.arange(1, width + 1)))
  return search(rank).astype(jnp.int32)
