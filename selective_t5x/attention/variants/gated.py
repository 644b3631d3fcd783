"""Attention whose keys fade or leave by a gate of their own.

A gate decides when a token is read what becomes of its key: F of key j for
query i depends on the key's gate and on how far the query is. So F is known
without other tokens, and a pruned cache evicts by it as by selection's F.

Shapes: B batch, N length, H heads, D head size. Sources: arXiv 2512.03324 and
arXiv 2506.05345; `eviction_gates` has the gates.
"""

import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped

from selective_t5x.attention import (
  capabilities,
  checks,
  masks,
  memory,
  reference,
  steps,
)
from selective_t5x.attention.arrays import Array, Setting


def gate_masking(
  rates: Float[Array, '#B N'],
  key_position: Int[Array, '#B N'],
  query_position: Int[Array, '#B Q'],
  delay: int | None,
) -> Float[Array, '#B Q N']:
  """Returns F: what a gate subtracts from its key's logits, by the distance.

  F is rate * distance without a delay; with one it is the rate from that
  distance on, and 0 before. F is 0 for the first token of a segment.

  Args:
    rates: f32[B, N], of the keys; what is below zero counts as zero.
    key_position: i32[B, N], in the segment, from 1.
    query_position: i32[B, Q], in the segment, from 1; as many as N or 1.
    delay: in tokens, 1 or more; None for a rate by distance.
  """
  rates = jnp.maximum(rates, 0)[:, None]
  distance = query_position[..., None] - key_position[:, None]
  if delay is None:
    masking = rates * jnp.maximum(distance, 0)
  else:
    masking = jnp.where(distance >= delay, rates, 0)
  return jnp.where(key_position[:, None] == 1, 0, masking)


@capabilities.declare(masking=True, memory_tau=True)
def gated_attention(
  query: Array,
  key: Array,
  value: Array,
  *,
  rates: Array | None = None,
  rate_position: Array | None = None,
  query_position: Array | None = None,
  delay: int | None = None,
  scale: Setting | None = None,
  bias: Array | None = None,
  segment_ids: Array | None = None,
  memory_tau: float | None = None,
  return_masking: bool = False,
  masking_row: Array | None = None,
  position: Array | None = None,
  masking: Array | None = None,
):
  """Causal attention, out = softmax(A - F) V with F of `gate_masking`.

  An extension of `eviction_gates` gives rates, positions and delay. Source:
  ours, for both papers' gates; there keys of a head have gates of their own,
  here one gate serves all heads, as they share the keys that are kept.

  Gin: gin/attention/retention.gin, gin/attention/delayed_eviction.gin.

  Args, beside those of `attention.api`:
    rates: [B, N], those of the keys, zero or more; None for zeros: plain
      attention.
    rate_position: i32[B, N], the positions of the keys in their segment, from
      1.
    query_position: i32[B or 1, N] of whole rows, i32[B, 1] in a step.
    delay: as in `gate_masking`.
    memory_tau: a positive number; M is then returned too.
    return_masking: whether to return F too.
    masking_row: i32[B], a row of F to return too; the tokens before it must be
      one segment without padding.
    masking: f32[B, N] in a step, its row of F.

  Returns:
    as `attention.selective_attention`: out and what is requested, M f32[B, N],
    F f32[B, N, N], the row of F f32[B, N]; in a step out and the next row of F.

  Raises:
    ValueError: if the shapes do not fit together.
  """
  batch, slots = key.shape[:2]
  scale = checks.scale('gated_attention', scale, query)
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  if rates is None:
    rates = jnp.zeros((batch, slots), dtype)
    rate_position = jnp.ones((batch, slots), jnp.int32)
    query_position = jnp.ones((batch, query.shape[1]), jnp.int32)
  if rates.shape != (batch, slots) or rate_position.shape != rates.shape:
    raise ValueError(
      f'attention: rates and rate_position must be [B, N] = {[batch, slots]}, '
      f'got {list(rates.shape)} and {list(rate_position.shape)}'
    )
  rates = rates.astype(dtype)
  if position is not None:
    checks.step(query, key, value, bias, position)
    row = masking[:, None, None]
    out = steps.causal_step(
      query,
      key,
      value,
      scale=scale,
      bias=-row if bias is None else bias - row,
      position=position,
    )
    following = gate_masking(rates, rate_position, query_position + 1, delay)
    filled = jnp.arange(slots) <= position[:, None]
    return out, jnp.where(filled, following[:, 0], 0).astype(masking.dtype)

  checks.shapes(query, key, value, bias, segment_ids)
  rates = masks.zero_padding(rates, segment_ids)
  visible = masks.visible(slots, segment_ids)
  every = gate_masking(rates, rate_position, query_position, delay)
  every = jnp.where(visible, every, 0)
  out = reference.attention_where(
    query,
    key,
    value,
    scale=scale,
    bias=-every[:, None] if bias is None else bias - every[:, None],
    visible=visible,
    segment_ids=segment_ids,
  )
  results: list[Array] = [out]
  if memory_tau is not None:
    results.append(
      memory.visible_tokens(every, memory_tau, segment_ids=segment_ids)
    )
  if return_masking:
    results.append(every)
  if masking_row is not None:
    results.append(_row(rates, rate_position, masking_row, delay))
  return tuple(results) if len(results) > 1 else out


def _row(
  rates: Float[Array, 'B N'],
  rate_position: Int[Array, 'B N'],
  row: Shaped[Array, ' B'],
  delay: int | None,
) -> Float[Array, 'B N']:
  """Returns the row of F of a query, i32[B], in one segment."""
  masking = gate_masking(rates, rate_position, row[:, None] + 1, delay)[:, 0]
  return jnp.where(jnp.arange(rates.shape[1]) < row[:, None], masking, 0)
