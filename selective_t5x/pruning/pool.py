"""Eviction where each head keeps keys of its own, in one pool of entries.

An entry is the key and the value of one head at one position. All heads of a
layer share a pool of H * K entries, so a head that needs more keys takes the
room of another. Whole rows and the KV cache call the same `step`.

Shapes: B batch, N length, H heads, K the budget, E entries: N * H in whole
rows, where entry j * H + h is that of position j and head h; H * K in a cache,
and one for each head's new key. A row fills its entries in that order too; once
full, evicted entries are replaced in place.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Shaped

from selective_t5x.attention import masks
from selective_t5x.attention.arrays import Array
from selective_t5x.pruning.eviction import State, remember
from selective_t5x.pruning.policy import Policy


class Entries(NamedTuple):
  """The facts that a policy sees at one query, before the eviction.

  Entries that are not held may hold anything, even NaN.

  Attributes:
    held: bool[B, E], the query's own entries included.
    heads: i32[B, E], the head of each.
    positions: i32[B, E], positions in the segment, from 0.
    position: i32[B], that of the query.
    scores: f32[B, E, ...], the policy's scores; 0 for the own entries.
    logits: f32[B, E], of the query of the entry's head.
    budget: i32[], K: H * K entries may stay; may be traced.
    num_heads: H.
  """

  held: Bool[Array, 'B E']
  heads: Int[Array, '#B E']
  positions: Int[Array, '#B E']
  position: Int[Array, ' B']
  scores: Float[Array, 'B E *rest']
  logits: Float[Array, 'B E']
  budget: Int[Array, ''] | int
  num_heads: int


class Kept(NamedTuple):
  """As `eviction.Kept`, with keys bool[B, H, N, N] and scores of N * H."""

  keys: Bool[Array, 'B H N N']
  scores: Float[Array, 'B E *rest'] | None
  totals: Mapping[str, Array] = {}
  certificate: None = None


def step(
  policy: Policy, entries: Entries
) -> tuple[Bool[Array, 'B E'], Float[Array, 'B E *rest']]:
  """Evicts what exceeds H * K entries, at most one for each head's new key.

  The evictable entries with the largest `order` go; of equal ones the oldest,
  then that of the first head.

  Returns:
    bool[B, E], the entries that stay, and the scores for the next query.
  """
  held = entries.held
  may_go = policy.evictable(entries)
  order = jnp.where(may_go, policy.order(entries), -jnp.inf)
  index = jnp.broadcast_to(jnp.arange(held.shape[1]), held.shape)
  *_, index = jax.lax.sort(
    (
      -order,
      jnp.broadcast_to(entries.positions, held.shape),
      jnp.broadcast_to(entries.heads, held.shape),
      index,
    ),
    dimension=1,
    num_keys=3,
  )
  limit = entries.budget * entries.num_heads
  over = jnp.sum(held, axis=1, keepdims=True) - limit
  places = jnp.argsort(index, axis=1)
  kept = held & ~(may_go & (places < over))
  return kept, policy.accumulate(entries, kept)


def weights(entries: Entries, seen: Bool[Array, 'B E']) -> Float[Array, 'B E']:
  """Returns the attention weight of each seen entry in its head, else 0."""
  by_head = softmax(entries.logits, entries.heads, seen, entries.num_heads)
  return jnp.sum(by_head, axis=1)


def softmax(
  logits: Float[Array, 'B E'],
  heads: Int[Array, '#B E'],
  seen: Bool[Array, 'B E'],
  num_heads: int,
) -> Float[Array, 'B H E']:
  """Returns the weights of the seen entries of each head, 0 for others."""
  own = (heads[:, None] == jnp.arange(num_heads)[:, None]) & seen[:, None]
  # The minimum is finite for rows that see no entry.
  least = jnp.finfo(logits.dtype).min
  return jnp.where(
    own, jax.nn.softmax(jnp.where(own, logits[:, None], least)), 0
  )


def start(
  policy: Policy,
  segment_ids: Shaped[Array, 'B N'],
  *,
  logits_dtype: Any = jnp.float32,
  num_heads: int,
) -> State:
  """Returns the state before the first query: no entry, of N * H, is held."""
  shape = segment_ids.shape[0], segment_ids.shape[1] * num_heads
  scores = jnp.zeros((*shape, *policy.score_shape), logits_dtype)
  return State(jnp.zeros(shape, bool), scores, {})


def serve(
  policy: Policy,
  segment_ids: Shaped[Array, 'B N'],
  states: tuple[State, State | None],
  queries: Int[Array, ' C'],
  *,
  budget: Int[Array, ''] | int,
  logits: Float[Array, 'B H C N'],
  last: Int[Array, ' B'] | None = None,
) -> tuple[tuple[State, State | None], Bool[Array, 'B H C N']]:
  """Evicts entries query by query, like `eviction.serve`.

  Args:
    policy: decides which entries are evicted.
    segment_ids: i32[B, N], 0 for padding, each segment contiguous.
    states: as in `eviction.serve`, of [B, N * H] entries: those of a key are
      neighbours.
    queries: i32[C], the indices of the queries.
    budget: i32[], K, 2 or more; may be traced.
    logits: f32[B, H, C, N].
    last: as in `eviction.serve`.

  Returns:
    The states after the queries, and the keys that each head keeps.
  """
  batch, heads, _, length = logits.shape

  def of_entries(x):
    return jnp.repeat(x, heads, axis=1)

  ids = of_entries(segment_ids)
  where = of_entries(jnp.arange(length)[None])
  positions = masks.position_in_segment(length, segment_ids)

  def serve_one(states, rows):
    state, remembered = states
    query, logits = rows
    segment = jnp.take(segment_ids, query, axis=1)[:, None]
    held = state.held | (where == query)
    held &= (ids == segment) & (segment != 0)
    kept, scores = step(
      policy,
      Entries(
        held=held,
        heads=jnp.tile(jnp.arange(heads), length)[None],
        positions=of_entries(positions),
        position=jnp.take(positions, query, axis=1),
        scores=state.scores,
        logits=jnp.swapaxes(logits, 1, 2).reshape(batch, -1),
        budget=budget,
        num_heads=heads,
      ),
    )
    state = State(kept, scores, {})
    if last is not None:
      remembered = remember(state, remembered, query == last)
    return (state, remembered), kept

  states, kept = jax.lax.scan(
    serve_one, states, (queries, jnp.moveaxis(logits, 2, 0))
  )
  # [C, B, N * H] to [B, H, C, N].
  kept = jnp.transpose(kept.reshape(-1, batch, length, heads), (1, 3, 0, 2))
  return states, kept


def keep_mask(
  policy: Policy,
  segment_ids: Shaped[Array, 'B N'],
  *,
  budget: Int[Array, ''] | int,
  logits: Float[Array, 'B H N N'],
  last: Int[Array, ' B'] | None = None,
  **unread,
) -> Kept:
  """Evicts entries query by query, like `eviction.keep_mask`.

  Args:
    policy: decides which entries are evicted.
    segment_ids: i32[B, N], 0 for padding, each segment contiguous.
    budget: i32[], K, 2 or more; may be traced.
    logits: f32[B, H, N, N], axis 2 the query.
    last: i32[B], the query after which scores are returned; None for none.
    **unread: arguments of `eviction.keep_mask` that no pool reads.
  """
  del unread
  state = start(
    policy, segment_ids, logits_dtype=logits.dtype, num_heads=logits.shape[1]
  )
  (_, remembered), kept = serve(
    policy,
    segment_ids,
    (state, None if last is None else state),
    jnp.arange(segment_ids.shape[1]),
    budget=budget,
    logits=logits,
    last=last,
  )
  return Kept(kept, None if remembered is None else remembered.scores, {})


def places(
  kept: Bool[Array, 'B E'], position: Int[Array, ' B'], heads: int
) -> Int[Array, 'B H']:
  """Returns where each head's new key goes in a cache.

  Args:
    kept: bool[B, E], of the cache's entries, from `step`.
    position: i32[B], the position of the new keys.
    heads: H.

  Returns:
    i32[B, H], the entries that were evicted, or the next empty ones.
  """
  gone = jnp.argsort(kept, axis=1, stable=True)[:, :heads]
  following = heads * position[:, None] + jnp.arange(heads)
  is_full = heads * position >= kept.shape[1]
  return jnp.where(is_full[:, None], gone, following)
