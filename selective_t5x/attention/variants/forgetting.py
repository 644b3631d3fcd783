"""Forgetting attention: a gate at every token fades what lies before it.

Shapes: B batch, N length, H heads, D head size. Source: Lin, Nikishin, He,
Courville, "Forgetting Transformer", arXiv 2503.02130, section 3.
"""

import jax
import jax.numpy as jnp

from selective_t5x.attention import api, masks
from selective_t5x.attention.implementations import needs_every_key


def forget_bias(
  log_forget: jax.Array, live: jax.Array | None = None
) -> jax.Array:
  """Sums the log of the gates that lie between a key and its query.

  The paper adds D[i, j] = sum_{j < k <= i} log f[k] = c[i] - c[j] to the
  logits, c the running sum. A softmax over j does not see c[i], so -c[j] alone
  is the same attention, and a bias that every implementation can add.

  Args:
    log_forget: [B, N, H], zero or less.
    live: int or bool[B, N], 0 where there is no token; None for a token
      everywhere. Sums run through segments: only differences inside one count.

  Returns:
    f32[B, H, 1, N], -c; it rises with j.
  """
  dtype = jnp.promote_types(log_forget.dtype, jnp.float32)
  log_forget = masks.zero_padding(log_forget.astype(dtype), live)
  return -jnp.cumsum(log_forget, axis=1).transpose(0, 2, 1)[:, :, None]


@needs_every_key
def forgetting_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  log_forget: jax.Array,
  scale: float | None = None,
  bias: jax.Array | None = None,
  segment_ids: jax.Array | None = None,
  implementation: str | None = None,
  position: jax.Array | None = None,
) -> jax.Array:
  """Causal attention whose logits fade with the gates passed on the way.

  out = softmax(A + c_i - c_j) V, c the running sum of log_forget. All gates at
  1 is causal attention. `forget_gate.ForgetGate` makes log_forget of a layer's
  input. Differs from the paper: positions are embedded, or biases added, as
  the network does; there are none.

  Args:
    query: [B, N, H, D].
    key: [B, N, H, D].
    value: [B, N, H, D].
    log_forget: [B, N, H], the log of each token's gate, zero or less.
    scale: multiplies the logits; None for D ** -0.5.
    bias: added to the logits; broadcasts to [B, H, N, N].
    segment_ids: i32[B, N], 0 for padding, each run of equal ids a segment;
      None for one segment without padding.
    implementation: as of `api.causal_attention`.
    position: i32[B], for a step of cached decoding: query is then [B, 1, H, D],
      the token in this slot, log_forget that of all slots, and bias broadcasts
      to [B, H, 1, N].

  Returns:
    [B, N, H, D] in value's dtype, [B, 1, H, D] of a step; zero in padding rows.
    The logits and sums are float32.

  Raises:
    ValueError: if the shapes do not fit together.
    UserError: as of `api.causal_attention`.
  """
  if log_forget.shape != key.shape[:3]:
    raise ValueError(
      f'attention: log_forget must be [B, N, H] = {list(key.shape[:3])}, got '
      f'{list(log_forget.shape)}'
    )
  live = segment_ids
  if position is not None:
    live = jnp.arange(key.shape[1]) <= position[:, None]
  fading = forget_bias(log_forget, live)
  return api.causal_attention(
    query,
    key,
    value,
    scale=scale,
    bias=fading if bias is None else bias + fading,
    segment_ids=segment_ids,
    implementation=implementation,
    position=position,
  )
