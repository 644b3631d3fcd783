"""The maths of selective attention: pure functions of arrays."""

from selective_t5x.attention.api import (
  causal_attention,
  full_attention,
  selective_attention,
)
from selective_t5x.attention.masked_bias import masked_bias_attention
from selective_t5x.attention.selection import masking_matrix
from selective_t5x.attention.variants.differential import (
  differential_attention,
  differential_v2_attention,
)
from selective_t5x.attention.variants.forgetting import forgetting_attention
from selective_t5x.attention.variants.gated import gated_attention
from selective_t5x.attention.variants.patterns import (
  strided_attention,
  window_attention,
)
from selective_t5x.attention.variants.stick_breaking import (
  stick_breaking_attention,
)

__all__ = [
  'causal_attention',
  'differential_attention',
  'differential_v2_attention',
  'forgetting_attention',
  'full_attention',
  'gated_attention',
  'masked_bias_attention',
  'masking_matrix',
  'selective_attention',
  'stick_breaking_attention',
  'strided_attention',
  'window_attention',
]
