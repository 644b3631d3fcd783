"""The keys that sequential eviction leaves to every query of whole rows."""

import jax
import jax.numpy as jnp

from selective_t5x.attention import masks
from selective_t5x.pruning.policy import Policy, View


def keep_mask(
  policy: Policy,
  segment_ids: jax.Array,
  *,
  budget: jax.Array | int,
  layer: int = 0,
  masking: jax.Array | None = None,
  logits: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
  """Serves the queries one by one and says which keys each attends to.

  A budget counts the keys of the query's own segment, so a packed row keeps
  what each segment would keep alone.

  Args:
    policy: which key goes.
    segment_ids: i32[B, N], 0 for padding, each segment contiguous.
    budget: i32[], K of this layer, 2 or more; may be traced.
    layer: the layer's number, from 0.
    masking: f32[B, N, N], F, axis 1 the query; read by policies that say so.
    logits: f32[B, H, N, N], axis 2 the query, F subtracted; read by policies
      that say so.

  Returns:
    bool[B, N, N], axis 1 the query: false for keys that are later, evicted, of
    another segment or padding; and the scores that each query leaves behind,
    f32[B, N, N], None unless the policy accumulates.
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
