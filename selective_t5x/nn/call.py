"""The facts that a network passes to each of its layers."""

from collections.abc import Sequence

import flax
import jax

from selective_t5x.attention.distance_bias import DistanceBias
from selective_t5x.nn import cache


class Call(flax.struct.PyTreeNode):
  """The facts of one call of a network, the same for all layers of a stack.

  Attributes:
    segment_ids: i32[B, N], 0 for padding; not read while decoding.
    deterministic: whether dropout is off.
    memory_tau: a number makes self-attention sow M, f32[B, N]; None for no M.
    live_keys: whether self-attention sows how many keys each query reads,
      f32[B, N].
    prefix: i32[B, N], 1 for tokens that see each other; None for no token.
    encoded: [B, K, M], the encoder's output; None without an encoder.
    encoder_ids: i32[B, K], segments of the encoder's tokens, 0 for padding.
    bias: [1, H, N, N] or a DistanceBias, added to an encoder's logits; None if
      each layer has its own.
    positions: i32[B, N], the positions of whole rows' tokens, which rotary
      embeddings read; None counts along the row.
    place: the place of the tokens in the KV cache; None unless the network
      decodes.
    budgets: i32[L], the number of keys that each decoder layer may hold, 2 or
      more; may be traced for whole rows. None without pruning.
  """

  segment_ids: jax.Array
  deterministic: bool = flax.struct.field(pytree_node=False, default=True)
  memory_tau: float | None = flax.struct.field(pytree_node=False, default=None)
  live_keys: bool = flax.struct.field(pytree_node=False, default=False)
  prefix: jax.Array | None = None
  encoded: jax.Array | None = None
  encoder_ids: jax.Array | None = None
  bias: jax.Array | DistanceBias | None = None
  positions: jax.Array | None = None
  place: cache.Place | None = None
  budgets: Sequence[int] | jax.Array | None = None
