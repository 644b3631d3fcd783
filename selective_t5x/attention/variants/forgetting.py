"""Forgetting attention: the gate of each token fades all earlier tokens.

Shapes: B batch, N length, H heads, D head size. Source: Lin, Nikishin, He,
Courville, "Forgetting Transformer", arXiv 2503.02130, section 3.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped

from selective_t5x.attention import (
  capabilities,
  checks,
  implementations,
  masks,
  nonfinite,
  reference,
  steps,
)
from selective_t5x.attention.arrays import Array, Setting

# Logs of gates are clipped to this minimum, at which all is forgotten.
LEAST_LOG = -1024.0


def gate_sums(
  log_forget: Float[Array, 'B N H'],
  live: Shaped[Array, 'B N'] | None = None,
) -> tuple[Float[Array, 'B N H'], Float[Array, 'B N H']]:
  """Sums the logs of the gates, as a whole number and a remainder.

  One float32 is off by up to 6e-5 where the sum is 1,024 to 2,048 (2,048 gates
  near one half), and by several times as much where it is summed in float32.
  Both numbers together are off by less than 1e-6 (measured at N = 2,048, gates
  from 0.1 to 1). Differences of the whole numbers are exact, so the error of
  c[i] - c[j] is that and its own rounding: 2e-6 for a difference of up to 16,
  4e-6 for one of 100. This method is ours.

  Args:
    log_forget: [B, N, H], zero or less; clipped to LEAST_LOG.
    live: int or bool[B, N], 0 where there is no token; None for a token
      everywhere. Sums run across segments: use differences inside one only.

  Returns:
    f32[B, N, H], whole numbers, exact to 2 ** 24, without a gradient; and
    f32[B, N, H], from -0.5 to 0.5. c[i] is the sum of the two.
  """
  dtype = jnp.promote_types(log_forget.dtype, jnp.float32)
  log_forget = masks.zero_padding(log_forget.astype(dtype), live)
  log_forget = jnp.maximum(log_forget, LEAST_LOG)

  def add(earlier, later):
    part = earlier[1] + later[1]
    carried = jax.lax.stop_gradient(jnp.round(part))
    return earlier[0] + later[0] + carried, part - carried

  whole = jax.lax.stop_gradient(jnp.round(log_forget))
  return jax.lax.associative_scan(add, (whole, log_forget - whole), axis=1)


def forget_bias(
  log_forget: Float[Array, 'B N H'],
  live: Shaped[Array, 'B N'] | None = None,
  query: Int[Array, '#B Q'] | None = None,
) -> Float[Array, 'B H Q_or_1 N']:
  """Sums the logs of the gates between a key and its query.

  The paper adds D[i, j] = sum_{j < k <= i} log f[k] = c[i] - c[j] to the
  logits; c is the running sum. c[i] does not change a softmax over j, so -c[j]
  alone gives the same attention, with fewer exact digits.

  Args:
    log_forget: [B, N, H], zero or less.
    live: as in `gate_sums`.
    query: i32[B or 1, Q], the slots of the queries; None for -c.

  Returns:
    f32[B, H, Q, N], D, off by 2e-6 where it is above -16 (`gate_sums`); or
    f32[B, H, 1, N], -c, which is rounded once: off by 6e-5 at 1,024 to 2,048.
  """
  whole, part = gate_sums(log_forget, live)

  def as_keys(x):
    return x.transpose(0, 2, 1)[:, :, None]

  if query is None:
    return -as_keys(whole + part)
  at_query = jnp.take_along_axis(whole, query[..., None], axis=1)
  levels = at_query.transpose(0, 2, 1)[..., None] - as_keys(whole)
  at_query = jnp.take_along_axis(part, query[..., None], axis=1)
  return levels + (at_query.transpose(0, 2, 1)[..., None] - as_keys(part))


@capabilities.declare(implementation=True, needs_every_key=True)
def forgetting_attention(
  query: Array,
  key: Array,
  value: Array,
  *,
  log_forget: Array,
  scale: Setting | None = None,
  bias: Array | None = None,
  segment_ids: Array | None = None,
  implementation: str | None = None,
  position: Array | None = None,
) -> Array:
  """Causal attention whose logits fade by the gates between key and query.

  out = softmax(A + c_i - c_j) V, c the running sum of log_forget. With all
  gates at 1 it is causal attention. `forget_gate.ForgetGate` makes log_forget
  from a layer's input. Differs from the paper, which has no positions: the
  network may embed positions or add biases.

  Args, beside those of `attention.api`:
    log_forget: [B, N, H], the log of each token's gate, zero or less, also
      -inf; clipped to LEAST_LOG. In a step it has all slots.

  Sums are float32; the sum of the gates between a key and its query is off by
  2e-6 where it is above -16 (`gate_sums`), at any length.
  """
  if log_forget.shape != key.shape[:3]:
    raise ValueError(
      f'attention: log_forget must be [B, N, H] = {list(key.shape[:3])}, got '
      f'{list(log_forget.shape)}'
    )
  scale = checks.scale('forgetting_attention', scale, query)
  if position is not None:
    checks.step(query, key, value, bias, position)
    live = jnp.arange(key.shape[1]) <= position[:, None]
    fading = forget_bias(log_forget, live, position[:, None])
    return steps.causal_step(
      query,
      key,
      value,
      scale=scale,
      bias=fading if bias is None else bias + fading,
      position=position,
    )
  checks.shapes(query, key, value, bias, segment_ids)
  name = implementations.choose(
    implementation, 'forgetting_attention', dtype=query.dtype, bias=True
  )
  # Clipped first, so that the log of a gate of 0 is finite.
  log_forget = jnp.maximum(log_forget, LEAST_LOG)[..., None]
  (log_forget,), faults = nonfinite.clean(log_forget, live=segment_ids)
  log_forget = log_forget[..., 0]
  if name == 'reference':
    every = jnp.arange(query.shape[1])[None]
    fading = forget_bias(log_forget, segment_ids, every)
    out = reference.causal_attention(
      query,
      key,
      value,
      scale=scale,
      bias=fading if bias is None else bias + fading,
      segment_ids=segment_ids,
      prefix=None,
    )
  else:
    levels, part = gate_sums(log_forget, segment_ids)
    fading = -part.transpose(0, 2, 1)[:, :, None]
    out, _ = implementations.FAST[name](
      query,
      key,
      value,
      selection=None,
      scale=scale,
      bias=fading if bias is None else bias + fading,
      segment_ids=segment_ids,
      memory_tau=None,
      levels=levels,
    )
  start = masks.segment_starts(query.shape[1], segment_ids)
  return nonfinite.mark(out, nonfinite.causally(start)(faults, False))
