"""What F must exceed for a key to be dead in the fused kernels.

The bound is that of `live_keys`; here it is one number for each key and block
of queries, N * N / block numbers, which kernels compare with their sums.

Shapes: B batch, N length, H heads, G selection heads, D head size, T blocks.
"""

import jax
import jax.numpy as jnp

from selective_t5x.attention import live_keys
from selective_t5x.attention.blocked_tiles import Keys, Queries
from selective_t5x.attention.distance_bias import DistanceBias


def limits(
  query: jax.Array,
  key: jax.Array,
  start: jax.Array | None,
  bias: DistanceBias | None,
  *,
  groups: int,
  block: int,
  scale: float,
  forget_below: float,
  memory_tau: float | None,
) -> jax.Array:
  """Returns f32[B, G, T, 1, N]: a key is dead where F exceeds its number.

  F is that of a block's first query, and the key comes before the block. A key
  that is dead stays dead in later blocks. No gradient passes through.

  Args:
    query: [B, H, N, D].
    key: [B, H, N, D].
    start: i32[B, N], as `masks.segment_starts` returns it; None for one
      segment.
    bias: that of the heads, without distances ahead; None without one.
    groups: G.
    block: queries of a block, a divisor of N.
    scale: multiplies the logits.
    forget_below: the limit of the weight of all dead keys; positive.
    memory_tau: tau of M, which counts no dead key; None without M.
  """
  batch, heads, length, size = query.shape
  shared = heads // groups
  query, key = (
    jax.lax.stop_gradient(x).astype(jnp.float32) for x in (query, key)
  )
  query = (scale * query).reshape(batch, heads, -1, block, size)
  query = query.transpose(2, 0, 1, 4, 3)

  def of_group(group):
    own = slice(group * shared, (group + 1) * shared)
    window = None
    if bias is not None:
      values = jax.lax.stop_gradient(bias.values).astype(jnp.float32)
      values = values if values.shape[0] == 1 else values[own]
      window = DistanceBias(values).window(block)
    bound = live_keys.bound(
      Queries(query[:, :, own]),
      Keys(key[:, own], key[:, own], bias=window),
      start,
      forget_below=forget_below,
      protect_bos=True,
      floor=memory_tau or 0.0,
    )
    return bound.limit(jnp.arange(length // block))

  # [G, T, B, N]
  every = jnp.stack([of_group(group) for group in range(groups)])
  return every.transpose(2, 0, 1, 3)[:, :, :, None]
