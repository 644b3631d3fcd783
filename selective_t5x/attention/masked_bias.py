"""Attention functions for networks whose bias holds the mask, as flaxformer's.

Such a network gives its `attention_fn` no segments: a masked logit has a bias
of -1e10. The mask of a causal decoder, packed or not, has all that is needed.
Source: ours.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from selective_t5x.errors import UserError

# Half of what flaxformer and T5X add to a masked logit.
_MASKED = -5e9


def segments_of(allowed: jax.Array) -> jax.Array:
  """Returns the segment of each token.

  Args:
    allowed: bool[B, N, N], which keys (axis 2) a query sees: itself and the
      earlier tokens of its segment; none for padding.

  Returns:
    i32[B, N], 1 + the place of the segment's first token, 0 for padding.
  """
  first = jnp.argmax(allowed, axis=-1).astype(jnp.int32)
  return jnp.where(jnp.any(allowed, axis=-1), 1 + first, 0)


def masked_bias_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  bias: jax.Array | None = None,
  broadcast_dropout: bool = True,
  rescale_logits: bool = False,
  dropout_rng: jax.Array | None = None,
  dropout_rate: float = 0.0,
  enable_dropout: bool = True,
  dtype: Any = jnp.float32,
  precision: Any = None,
  use_extra_logit: bool = False,
  float32_logits: bool = False,
  *,
  attention_fn: Callable[..., jax.Array],
) -> jax.Array:
  """Calls an attention function with flaxformer's arguments.

  Gin: gin/t5x/flaxformer.gin.

  Args:
    query: [B, N, H, D].
    key: [B, N, H, D].
    value: [B, N, H, D].
    bias: broadcasts to [B, H, N, N], with -1e10 where a logit is masked. The
      mask is the same for all heads.
    broadcast_dropout: must be True: one mask of dropout for all queries.
    rescale_logits: whether logits are divided by D ** 0.5.
    dropout_rng: the key of dropout.
    dropout_rate: the rate of the attention weights.
    enable_dropout: whether dropout is on.
    dtype: the output's dtype.
    precision: not read: logits are computed as in `attention_fn`.
    use_extra_logit: must be False.
    float32_logits: not read: logits are float32.
    attention_fn: `attention.selective_attention` or a function with its
      arguments.

  Returns:
    [B, N, H, D]; NaN if the mask lets a query see a later token, since these
    functions are causal.

  Raises:
    UserError: in a decoding step, where this network keeps no F; or if an
      argument has a value that is not supported.
  """
  del precision, float32_logits
  if query.shape[1] != key.shape[1]:
    raise UserError(
      f'{query.shape[1]} queries of {key.shape[1]} keys: this network has no '
      'place for the masking of earlier queries, so it cannot decode; train, '
      'evaluate with teacher forcing and score with it (docs/bring_into_t5x.md)'
    )
  if use_extra_logit or (dropout_rate and not broadcast_dropout):
    raise UserError(
      'masked_bias_attention: use_extra_logit = True and broadcast_dropout = '
      'False are not supported'
    )
  length = query.shape[1]
  if bias is None:
    bias = jnp.zeros((1, 1, length, length), jnp.float32)
  allowed = jnp.any(bias > _MASKED, axis=1)
  if enable_dropout and dropout_rate > 0:
    keep = jax.random.bernoulli(
      dropout_rng,
      1 - dropout_rate,
      (*value.shape[:1], value.shape[2], 1, length),
    )
    # One mask for all queries: dropping a weight is dropping its value.
    value = (
      value * jnp.swapaxes(keep, 1, 3)[:, :, 0, :, None] / (1 - dropout_rate)
    )
  out = attention_fn(
    query,
    key,
    value.astype(query.dtype),
    scale=query.shape[-1] ** -0.5 if rescale_logits else 1.0,
    bias=jnp.where(allowed[:, None], bias, 0.0),
    segment_ids=jnp.broadcast_to(segments_of(allowed), query.shape[:2]),
  )
  is_causal = ~jnp.any(jnp.triu(allowed, 1))
  return jnp.where(is_causal, out, jnp.nan).astype(dtype)
