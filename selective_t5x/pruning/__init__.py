"""Context pruning: policies that decide which keys stay in a KV cache.

This package imports pure functions of arrays. The commands `search` and
`frontier` apply them to trained models.
"""

from selective_t5x.pruning.config import Pruning
from selective_t5x.pruning.eviction import keep_mask
from selective_t5x.pruning.h2o import H2O
from selective_t5x.pruning.policy import Policy, View
from selective_t5x.pruning.random import Random
from selective_t5x.pruning.selective import Selective
from selective_t5x.pruning.tova import TOVA
from selective_t5x.pruning.whole_rows import Pruned, pruned_attention
from selective_t5x.pruning.window import Window

__all__ = [
  'H2O',
  'TOVA',
  'Policy',
  'Pruned',
  'Pruning',
  'Random',
  'Selective',
  'View',
  'Window',
  'keep_mask',
  'pruned_attention',
]
