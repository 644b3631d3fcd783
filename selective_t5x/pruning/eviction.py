"""Sequential eviction over whole rows, and in a cache of K slots.

Both process the queries one by one with `Policy.step`, so they keep the same
keys.

Shapes: B batch, N length, K slots of a cache, as many as its budget. A row
fills its slots from 0. Its first key stays in slot 0, and its latest key is in
slot min(position, K - 1), where the next step of attention expects it
(attention/steps.py). The other keys are in any order.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Shaped

from selective_t5x.attention import masks
from selective_t5x.attention.arrays import Array
from selective_t5x.pruning.policy import Policy, View


def keep_mask(
  policy: Policy,
  segment_ids: Shaped[Array, 'B N'],
  *,
  budget: Int[Array, ''] | int,
  layer: Int[Array, ''] | int = 0,
  masking: Float[Array, 'B N N'] | None = None,
  logits: Float[Array, 'B H N N'] | None = None,
) -> tuple[Bool[Array, 'B N N'], Float[Array, 'B N N'] | None]:
  """Evicts keys query by query, and returns the keys that each attends to.

  A budget counts the keys of the query's own segment, so each segment of a
  packed row keeps the same keys as if it were alone.

  Args:
    policy: decides which key is evicted.
    segment_ids: i32[B, N], 0 for padding, each segment contiguous.
    budget: i32[], K of this layer, 2 or more; may be traced.
    layer: the layer's number, from 0.
    masking: f32[B, N, N], F, axis 1 the query; for `reads_masking` policies.
    logits: f32[B, H, N, N], axis 2 the query, F subtracted; for `reads_logits`
      policies.

  Returns:
    bool[B, N, N], axis 1 the query: false for keys that are later, evicted, of
    another segment or padding; and the scores after each query, f32[B, N, N],
    None unless the policy accumulates.
  """
  length = segment_ids.shape[1]
  slots = jnp.arange(length)
  positions = masks.position_in_segment(length, segment_ids)
  dtype = jnp.float32 if logits is None else logits.dtype

  def serve(state, rows):
    held, scores = state
    query, masking, logits = rows
    segment = jnp.take(segment_ids, query, axis=1)[:, None]
    held |= slots == query
    held &= (segment_ids == segment) & (segment != 0)
    kept, scores = policy.step(
      View(
        held=held,
        positions=positions,
        position=jnp.take(positions, query, axis=1),
        scores=scores,
        budget=budget,
        layer=layer,
        masking=masking,
        logits=logits,
      )
    )
    return (kept, scores), (kept, scores if policy.accumulates else None)

  rows = (
    slots,
    jnp.moveaxis(masking, 1, 0) if policy.reads_masking else None,
    jnp.moveaxis(logits, 2, 0) if policy.reads_logits else None,
  )
  nothing = jnp.zeros(segment_ids.shape, bool)
  _, (kept, scores) = jax.lax.scan(
    serve, (nothing, jnp.zeros(segment_ids.shape, dtype)), rows
  )
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), (kept, scores))


def last_slot(position: Int[Array, ' B'], slots: int) -> Int[Array, ' B']:
  """Returns the slots, i32[B], of the keys at i32[B] positions."""
  return jnp.minimum(position, slots - 1)


def admit(
  policy: Policy,
  position: Int[Array, ' B'],
  positions: Int[Array, 'B K'],
  *,
  layer: Int[Array, ''] | int,
  scores: Float[Array, 'B K'] | None = None,
  masking: Float[Array, 'B K'] | None = None,
  logits: Float[Array, 'B H K+1'] | None = None,
) -> tuple[Int[Array, ' B'], Float[Array, 'B K+1']]:
  """Finds the slot to evict for the key of the next query.

  Args:
    policy: decides which key is evicted.
    position: i32[B], the query's position.
    positions: i32[B, K], the positions of the keys in the slots.
    layer: the layer's number, from 0.
    scores: f32[B, K], the policy's accumulated scores; None if it has none.
    masking: f32[B, K], the query's row of F; None unless the policy reads it.
    logits: f32[B, H, K + 1], those of the slots and the query's own key, F
      subtracted; None unless the policy reads them.

  Returns:
    i32[B], the slot, `last_slot` if the row is not full yet; and the scores of
    the slots and of the query's own key, f32[B, K + 1].
  """
  batch, slots = positions.shape
  filled = jnp.arange(slots) < position[:, None]

  def with_own(x, own):
    return jnp.concatenate([x, own[:, None]], axis=1)

  if scores is None:
    scores = jnp.zeros(positions.shape, jnp.float32)
  nothing = jnp.zeros((batch,), scores.dtype)
  kept, scores = policy.step(
    View(
      held=with_own(filled, jnp.ones((batch,), bool)),
      positions=with_own(positions, position),
      position=position,
      scores=with_own(scores, nothing),
      budget=slots,
      layer=layer,
      masking=None if masking is None else with_own(masking, nothing),
      logits=logits,
    )
  )
  gone = filled & ~kept[:, :-1]
  return (
    jnp.where(
      jnp.any(gone, axis=1),
      jnp.argmax(gone, axis=1),
      last_slot(position, slots),
    ),
    scores,
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
  rows = jnp.arange(x.shape[0])
  is_last = (slot == last).reshape(last.shape + (1,) * (x.ndim - 2))
  moved = jnp.where(is_last, new, x[rows, last])
  # A single scatter runs in place; with two, one would copy the cache.
  both = jnp.stack([slot, last], axis=1)
  return x.at[rows[:, None], both].set(jnp.stack([moved, new], axis=1))


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
