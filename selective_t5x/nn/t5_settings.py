"""Settings and segments that T5 and T5X's decoder-only model share.

Source: Raffel et al., arXiv 1910.10683, and for T5 1.1 the t5 package.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from selective_t5x import attention
from selective_t5x.nn import settings, t5_layers
from selective_t5x.nn.extensions import Extension
from selective_t5x.pruning import Pruning


@dataclasses.dataclass(frozen=True)
class StackConfig(settings.DecoderSettings):
  """Settings that every T5-like network has, by T5X's names.

  Attributes, beside those of `settings.DecoderSettings`:
    mlp_activations: ('gelu', 'linear') for T5 1.1, ('relu',) for T5 1.0.
    logits_via_embedding: whether the token embedding also gives the logits, as
      in T5 1.0, or a separate matrix, as in T5 1.1.
    scale_attn_logits: whether attention logits are divided by head_dim ** 0.5,
      as in T5X's contrib/gpu, for optimisers other than Adafactor.
  """

  max_length = None
  has_relative_bias = True

  vocab_size: int
  dtype: Any = jnp.float32
  emb_dim: int = 512
  num_heads: int = 8
  head_dim: int = 64
  mlp_dim: int = 2048
  mlp_activations: Sequence[str] = ('relu',)
  dropout_rate: float = 0.1
  logits_via_embedding: bool = False
  attention_fn: Callable[..., Any] = attention.causal_attention
  pruning: Pruning | None = None
  attention_extension: Callable[..., Extension] | None = None
  scan_layers: bool = False
  remat_policy: str = 'none'
  unroll_layers: bool = False
  scale_attn_logits: bool = False

  @property
  def self_attention(self) -> Mapping[str, Any]:
    """T5 normalises nothing; see `t5_layers.query_init` for the scale."""
    return {
      'normalise': False,
      'kernel_init': t5_layers.KERNEL_INIT,
      'query_init': t5_layers.query_init(self.head_dim),
      **self.other_attention,
    }

  @property
  def other_attention(self) -> Mapping[str, Any]:
    """T5X's examples scale no logits, its contrib/gpu does on request."""
    return {'scale': self.head_dim**-0.5 if self.scale_attn_logits else 1.0}

  def __post_init__(self):
    """Refuses settings that would fail later and less clearly."""
    super().__post_init__()
    settings.check_activations(self)


def segments(tokens: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
  """Returns the segment of each token, i32[B, N], 0 for padding."""
  live = tokens > 0
  if segment_ids is None:
    return live.astype(jnp.int32)
  return jnp.where(live, segment_ids, 0)
