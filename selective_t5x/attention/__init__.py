"""The maths of selective attention: pure functions of arrays."""

from selective_t5x.attention.api import (
  causal_attention,
  full_attention,
  selective_attention,
)
from selective_t5x.attention.patterns import strided_attention, window_attention
from selective_t5x.attention.selection import masking_matrix

__all__ = [
  'causal_attention',
  'full_attention',
  'masking_matrix',
  'selective_attention',
  'strided_attention',
  'window_attention',
]
