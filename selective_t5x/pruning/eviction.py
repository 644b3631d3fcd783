"""Sequential eviction over whole rows, and in a cache of K slots.

Both process the queries one by one with `Policy.step`, so they keep the same
keys.

Shapes: B batch, N length, K slots of a cache, as many as its budget. A row
fills its slots from 0. Its first key stays in slot 0, and its latest key is in
slot min(position, K - 1), where the next step of attention expects it
(attention/steps.py). The other keys are in any order. With a policy that drops
keys early, slots may be empty anywhere; the latest key is always in slot K - 1.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Shaped

from selective_t5x.attention import masks
from selective_t5x.attention.arrays import Array
from selective_t5x.pruning.policy import Policy, Step, Tokens, View


class Kept(NamedTuple):
  """What sequential eviction leaves in whole rows.

  Attributes:
    keys: bool[B, N, N], axis 1 the query: false for keys that are later,
      evicted, of another segment or padding.
    scores: f32[B, N, ...], the scores after the query `last`; None unless it is
      given and the policy accumulates.
    totals: the policy's totals after that query, [B, ...] each; {} for none.
    certificate: f32[B, N, H], that of each query; None unless the policy
      certifies.
  """

  keys: Bool[Array, 'B N N']
  scores: Float[Array, 'B N *rest'] | None
  totals: Mapping[str, Array]
  certificate: Float[Array, 'B N H'] | None = None


class State(NamedTuple):
  """What a query leaves for the next one of its row.

  Attributes:
    held: bool[B, N], the keys that stay.
    scores: f32[B, N, ...], the policy's accumulated scores.
    totals: the policy's totals, [B, ...] each; {} for none.
  """

  held: Bool[Array, 'B N']
  scores: Float[Array, 'B N *rest']
  totals: Mapping[str, Array]


def start(
  policy: Policy,
  segment_ids: Shaped[Array, 'B N'],
  *,
  logits_dtype: Any = jnp.float32,
  tokens: Tokens | None = None,
) -> State:
  """Returns the state before the first query: no key is held.

  Args:
    policy: decides which key is evicted.
    segment_ids: i32[B, N].
    logits_dtype: that of the logits that the policy reads.
    tokens: as in `serve`; for `reads_keys` policies.
  """
  dtype, totals = logits_dtype, {}
  if tokens is not None:
    dtype = jnp.promote_types(dtype, tokens.value_norms.dtype)
    heads, size = tokens.query.shape[2:]
    totals = policy.new_totals(segment_ids.shape[0], heads, size, dtype)
  scores = jnp.zeros((*segment_ids.shape, *policy.score_shape), dtype)
  return State(jnp.zeros(segment_ids.shape, bool), scores, totals)


def serve(
  policy: Policy,
  segment_ids: Shaped[Array, 'B N'],
  states: tuple[State, State | None],
  queries: Int[Array, ' C'],
  *,
  budget: Int[Array, ''] | int,
  layer: Int[Array, ''] | int = 0,
  masking: Float[Array, 'B C N'] | None = None,
  logits: Float[Array, 'B H C N'] | None = None,
  tokens: Tokens | None = None,
  last: Int[Array, ' B'] | None = None,
) -> tuple[
  tuple[State, State | None],
  Bool[Array, 'B C N'],
  Float[Array, 'B C H'] | None,
]:
  """Evicts keys query by query, for queries that follow each other.

  A budget counts the keys of the query's own segment, so each segment of a
  packed row keeps the same keys as if it were alone.

  Args:
    policy: decides which key is evicted.
    segment_ids: i32[B, N], 0 for padding, each segment contiguous.
    states: the state before the first of the queries, and what has been
      remembered of the query `last` (any State before it); None there without
      `last`.
    queries: i32[C], the indices of the queries.
    budget: i32[], K of this layer, 2 or more; may be traced.
    layer: the layer's number, from 0.
    masking: f32[B, C, N], the queries' rows of F; for `reads_masking` policies.
    logits: f32[B, H, C, N], F subtracted; for `reads_logits` policies.
    tokens: the queries [B, C, H, D], the keys [B, N, H, D], value_norms
      f32[B, N, H]; for `reads_keys` policies.
    last: i32[B], the query after which the state is remembered; or None.

  Returns:
    The states after the queries, the keys that each keeps and attends to, and
    their certificates; None unless the policy certifies.
  """
  slots = jnp.arange(segment_ids.shape[1])
  positions = masks.position_in_segment(segment_ids.shape[1], segment_ids)

  def serve_one(states, rows):
    state, remembered = states
    query, masking, logits, vector = rows
    segment = jnp.take(segment_ids, query, axis=1)[:, None]
    held = state.held | (slots == query)
    held &= (segment_ids == segment) & (segment != 0)
    step = policy.step(
      View(
        held=held,
        positions=positions,
        position=jnp.take(positions, query, axis=1),
        scores=state.scores,
        budget=budget,
        layer=layer,
        masking=masking,
        logits=logits,
        tokens=None if tokens is None else tokens._replace(query=vector),
        totals=state.totals,
      )
    )
    state = State(step.kept, step.scores, dict(step.totals))
    if last is not None:
      remembered = remember(state, remembered, query == last)
    certificate = step.totals['certificate'] if policy.certifies else None
    return (state, remembered), (step.kept, certificate)

  rows = (
    queries,
    None if masking is None else jnp.moveaxis(masking, 1, 0),
    jnp.moveaxis(logits, 2, 0) if policy.reads_logits else None,
    None if tokens is None else jnp.moveaxis(tokens.query, 1, 0),
  )
  states, every = jax.lax.scan(serve_one, states, rows)
  kept, certificate = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), every)
  return states, kept, certificate


def remember(state: Any, remembered: Any, now: Bool[Array, ' B']) -> Any:
  """Returns the rows of `state` where it is time, else those remembered.

  Args:
    state: a pytree of [B, ...].
    remembered: as state.
    now: bool[B].
  """
  return jax.tree.map(
    lambda new, old: jnp.where(
      now.reshape(-1, *(1,) * (new.ndim - 1)), new, old
    ),
    state,
    remembered,
  )


def keep_mask(
  policy: Policy,
  segment_ids: Shaped[Array, 'B N'],
  *,
  logits: Float[Array, 'B H N N'] | None = None,
  tokens: Tokens | None = None,
  last: Int[Array, ' B'] | None = None,
  **settings,
) -> Kept:
  """Evicts keys query by query, and returns the keys that each attends to.

  Args:
    policy: decides which key is evicted.
    segment_ids: i32[B, N], 0 for padding, each segment contiguous.
    logits: f32[B, H, N, N], as in `serve`, of all queries.
    tokens: as in `serve`, of all queries.
    last: i32[B], the query after which scores and totals are returned; None for
      neither.
    **settings: more arguments of `serve`: budget, layer, masking.

  Returns:
    A Kept.
  """
  dtype = jnp.float32 if logits is None else logits.dtype
  state = start(policy, segment_ids, logits_dtype=dtype, tokens=tokens)
  (_, remembered), kept, certificate = serve(
    policy,
    segment_ids,
    (state, None if last is None else state),
    jnp.arange(segment_ids.shape[1]),
    logits=logits,
    tokens=tokens,
    last=last,
    **settings,
  )
  if certificate is not None:
    certificate = masks.zero_padding(certificate, segment_ids)
  if remembered is None:
    return Kept(kept, None, {}, certificate)
  scores = remembered.scores if policy.accumulates else None
  return Kept(kept, scores, remembered.totals, certificate)


def last_slot(position: Int[Array, ' B'], slots: int) -> Int[Array, ' B']:
  """Returns the slots, i32[B], of the keys at i32[B] positions."""
  return jnp.minimum(position, slots - 1)


def admit(
  policy: Policy,
  position: Int[Array, ' B'],
  positions: Int[Array, 'B K'],
  *,
  layer: Int[Array, ''] | int,
  scores: Float[Array, 'B K *rest'] | None = None,
  masking: Float[Array, 'B K'] | None = None,
  logits: Float[Array, 'B H K+1'] | None = None,
  tokens: Tokens | None = None,
  totals: Mapping[str, Array] | None = None,
  held: Bool[Array, 'B K'] | None = None,
) -> tuple[Int[Array, ' B'], Step]:
  """Finds the slot to evict for the key of the next query.

  Args:
    policy: decides which key is evicted.
    position: i32[B], the query's position.
    positions: i32[B, K], the positions of the keys in the slots.
    layer: the layer's number, from 0.
    scores: f32[B, K, ...], the policy's accumulated scores; None if it has
      none.
    masking: f32[B, K], the query's row of F; None unless the model selects.
    logits: f32[B, H, K + 1], those of the slots and the query's own key, F
      subtracted; None unless the policy reads them to evict.
    tokens: the query and the K + 1 keys; None unless the policy reads them.
    totals: the policy's totals; None if it has none.
    held: bool[B, K], the slots in use, for a policy that drops keys early; None
      for the first `position` ones.

  Returns:
    i32[B], the slot, `last_slot` if the row is not full yet; with `held` the
    first slot that is free now, where the key of the last slot goes. And what
    the query leaves, for the slots and the query's own key, K + 1 in all.
  """
  batch, slots = positions.shape
  filled = jnp.arange(slots) < position[:, None] if held is None else held

  def with_own(x, own):
    return jnp.concatenate([x, own[:, None]], axis=1)

  if scores is None:
    scores = jnp.zeros(positions.shape, jnp.float32)
  step = policy.step(
    View(
      held=with_own(filled, jnp.ones((batch,), bool)),
      positions=with_own(positions, position),
      position=position,
      scores=with_own(scores, jnp.zeros_like(scores[:, 0])),
      budget=slots,
      layer=layer,
      masking=None
      if masking is None
      else with_own(masking, jnp.zeros_like(masking[:, 0])),
      logits=logits,
      tokens=tokens,
      totals=totals or {},
    )
  )
  if held is not None:
    # The last slot counts as free if its key is gone, or there was none.
    return jnp.argmin(step.kept[:, :-1], axis=1), step
  gone = filled & ~step.kept[:, :-1]
  return (
    jnp.where(
      jnp.any(gone, axis=1),
      jnp.argmax(gone, axis=1),
      last_slot(position, slots),
    ),
    step,
  )


def put(
  x: Shaped[Array, 'B K *rest'],
  new: Shaped[Array, ' B *rest'],
  slot: Int[Array, ' B'],
  last: Int[Array, ' B'],
) -> Shaped[Array, 'B K *rest']:
  """Moves the entries of the last slots to the evicted ones, and puts new ones.

  Args:
    x: [B, K, ...], one entry per slot.
    new: [B, ...], the entry of the new key.
    slot: i32[B], from `admit`.
    last: i32[B], from `last_slot`.

  Returns:
    As x.
  """
  if x.ndim == 2:
    return _put_numbers(x, new, slot[:, None], last[:, None])
  rows = jnp.arange(x.shape[0])
  is_last = (slot == last).reshape(last.shape + (1,) * (x.ndim - 2))
  moved = jnp.where(is_last, new, x[rows, last])
  # A single scatter runs in place; with two, one would copy the cache.
  both = jnp.stack([slot, last], axis=1)
  return x.at[rows[:, None], both].set(jnp.stack([moved, new], axis=1))


def _put_numbers(x, new, slot, last):
  """Does as `put` with one number a slot, in a pass over all of them.

  A GPU fuses it with what computes the numbers, while a gather and a scatter
  are kernels of their own.
  """
  slots = jnp.arange(x.shape[1])
  entries = jnp.where(slots == last, x, jnp.zeros((), x.dtype))
  # At most one of them is not zero. A sum has a wider dtype than integers and
  # booleans have.
  moved = jnp.sum(entries, axis=1, keepdims=True).astype(x.dtype)
  x = jnp.where(slots == slot, moved, x)
  return jnp.where(slots == last, new[:, None], x)


def gather_kept(kept: Bool[Array, 'B N'], slots: int) -> Int[Array, 'B K']:
  """Returns the keys that a prompt leaves in the slots.

  Args:
    kept: bool[B, N], the keys that the prompt's last query keeps, K at most.
    slots: K, N at most.

  Returns:
    i32[B, K], the indices of these keys in rising order, so that the first and
    the last key are in their slots; the other indices are arbitrary.
  """
  return jnp.argsort(~kept, axis=1, stable=True)[:, :slots]
