"""Attention with fixed sparse patterns, baselines for selection.

Shapes: B batch, N length, H heads, D head size. A pattern depends on positions
in the segment, so each segment of a packed row has its own.
"""

import jax
import jax.numpy as jnp

from selective_t5x.attention import (
  capabilities,
  checks,
  masks,
  nonfinite,
  reference,
  steps,
)
from selective_t5x.errors import UserError, did_you_mean, is_integer

_IMPLEMENTATIONS = ('reference', 'blocked')


@capabilities.declare(implementation=True, needs_every_key=True)
def window_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  window: int,
  keep_first: bool = False,
  scale: float | None = None,
  bias: jax.Array | None = None,
  segment_ids: jax.Array | None = None,
  implementation: str | None = None,
  position: jax.Array | None = None,
) -> jax.Array:
  """Sliding-window attention: causal attention to the last `window` tokens.

  Query i sees key j where i - window < j <= i. Source: Beltagy et al.,
  "Longformer", arXiv 2004.05150, section 3.1, causal as in its language model;
  keep_first is from arXiv 2309.17453. While decoding, the KV cache keeps all
  keys; gin/pruning/window.gin is for a cache that evicts.

  Gin: gin/attention/window.gin.

  Args, beside those of `attention.api`:
    window: how many tokens a query sees, including itself; 1 or more.
    keep_first: whether it also sees the first token of its segment.
    implementation: 'reference'; 'blocked', which takes O(N * window) time and
      memory and no bias; None for the best that supports the call.
  """
  _check_size('window_attention.window', window)
  checks.flags('window_attention', keep_first=keep_first)
  if implementation not in (None, *_IMPLEMENTATIONS):
    raise UserError(
      f'window_attention.implementation = {implementation!r}: expected None, '
      "'reference' or 'blocked'"
      f'{did_you_mean(str(implementation), _IMPLEMENTATIONS)}'
    )
  if implementation == 'blocked' and bias is not None:
    raise UserError(
      "window_attention.implementation = 'blocked' cannot run here: it adds no "
      "bias; expected None, which picks one that can, or 'reference'"
    )

  def sees(query, key):
    seen = query - key < window
    return seen | (key == 0) if keep_first else seen

  scale = checks.scale('window_attention', scale, query)
  small = window < query.shape[1] and implementation != 'reference'
  if position is not None or bias is not None or not small:
    return _attend(query, key, value, scale, bias, segment_ids, position, sees)
  checks.shapes(query, key, value, bias, segment_ids)
  return _blocked_window(
    query, key, value, window, keep_first, scale, segment_ids
  )


@capabilities.declare(needs_every_key=True)
def strided_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  stride: int,
  scale: float | None = None,
  bias: jax.Array | None = None,
  segment_ids: jax.Array | None = None,
  position: jax.Array | None = None,
) -> jax.Array:
  """Causal attention to near tokens and to every `stride`-th before them.

  Query i sees key j where i - j <= stride or stride divides i - j. Source:
  Child et al., "Generating Long Sequences with Sparse Transformers", arXiv
  1904.10509, section 4.2, the strided pattern; every head sees the union of the
  two parts, one of the ways of section 4.1. Differs from it: dense logits are
  masked, which saves neither time nor memory.

  Gin: gin/attention/strided.gin.

  Args, beside those of `attention.api`:
    stride: l, 1 or more; near N ** 0.5 in the paper.
  """
  _check_size('strided_attention.stride', stride)

  def sees(query, key):
    distance = query - key
    return (distance <= stride) | (distance % stride == 0)

  scale = checks.scale('strided_attention', scale, query)
  return _attend(query, key, value, scale, bias, segment_ids, position, sees)


def _check_size(name, size):
  if not is_integer(size) or size < 1:
    raise UserError(f'{name} = {size!r}: expected an integer of 1 or more')


def _attend(query, key, value, scale, bias, segment_ids, position, sees):
  """Attends with dense logits where sees(query position, key position)."""
  if position is not None:
    checks.step(query, key, value, bias, position)
    return steps.causal_step(
      query,
      key,
      value,
      scale=scale,
      bias=bias,
      position=position,
      seen=sees(position[:, None], jnp.arange(key.shape[1])),
    )
  checks.shapes(query, key, value, bias, segment_ids)
  length = query.shape[1]
  at = masks.position_in_segment(length, segment_ids)
  visible = masks.visible(length, segment_ids)
  return reference.attention_where(
    query,
    key,
    value,
    scale=scale,
    bias=bias,
    visible=visible & sees(at[:, :, None], at[:, None]),
    segment_ids=segment_ids,
  )


def _blocked_window(query, key, value, window, keep_first, scale, segment_ids):
  """Attends in blocks of `window` queries to their own and the previous block.

  With keep_first, the first token of a query's segment is one more key.
  """
  batch, length, heads, _ = query.shape
  value_dtype = value.dtype
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  blocks = -(-length // window)
  padding = blocks * window - length
  query, key, value, _, faults = nonfinite.clean_heads(
    *(x.astype(dtype) for x in (query, key, value)), live=segment_ids
  )
  start = masks.segment_starts(length, segment_ids)

  def in_blocks(x, fill=0):
    room = [(0, 0), (0, padding), *[(0, 0)] * (x.ndim - 2)]
    x = jnp.pad(x, room, constant_values=fill)
    return x.reshape(x.shape[0], blocks, window, *x.shape[2:])

  def with_last(x):
    """Prepends the previous block to each block, [., T, 2 w, ...]."""
    before = jnp.pad(x[:, :-1], [(0, 0), (1, 0), *[(0, 0)] * (x.ndim - 2)])
    return jnp.concatenate([before, x], axis=2)

  slots = jnp.arange(blocks * window).reshape(1, blocks, window)
  # Slots before 0 come before every segment.
  key_slots = (slots[..., :1] - window + jnp.arange(2 * window))[:, :, None]
  distance = slots[..., None] - key_slots
  seen = (distance >= 0) & (distance < window)
  seen &= in_blocks(start, fill=length)[..., None] <= key_slots
  queries = in_blocks(query)
  logits = scale * jnp.einsum(
    'btihd,btjhd->bthij', queries, with_last(in_blocks(key))
  )
  least = jnp.finfo(dtype).min
  logits = jnp.where(seen[:, :, None], logits, least)
  values = with_last(in_blocks(value))
  if keep_first:
    # [B or 1, N, 1, 1]. Padding sees nothing, so its index does not matter.
    index = jnp.minimum(start, length - 1)[..., None, None]
    first_key, first_value = (
      jnp.take_along_axis(
        x, jnp.broadcast_to(index, (batch, length, 1, 1)), axis=1
      )
      for x in (key, value)
    )
    first = scale * jnp.einsum(
      'btihd,btihd->bthi', queries, in_blocks(first_key)
    )
    # A first token in the window is seen already.
    is_far = in_blocks(start <= jnp.arange(length) - window)[:, :, None]
    first = jnp.where(is_far, first, least)
    logits = jnp.concatenate([logits, first[..., None]], axis=-1)
  weights = jax.nn.softmax(logits)
  out = jnp.einsum('bthij,btjhd->btihd', weights[..., : 2 * window], values)
  if keep_first:
    out += jnp.einsum(
      'bthi,btihd->btihd', weights[..., -1], in_blocks(first_value)
    )
  out = out.reshape(batch, -1, heads, value.shape[-1])[:, :length]
  out = masks.zero_padding(out, segment_ids).astype(value_dtype)
  since = jnp.maximum(start, jnp.arange(length) - window + 1)
  reached, _ = faults.reach(nonfinite.causally(since))
  if keep_first:
    first_faults = jnp.take_along_axis(faults.key, index[..., 0], axis=1)
    reached |= first_faults & (start < length)[..., None]
  return nonfinite.mark(out, reached)
