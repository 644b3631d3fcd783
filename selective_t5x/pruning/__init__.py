"""Context pruning: which keys stay in a cache.

What is imported here is pure functions of arrays; the commands `search` and
`frontier` beside them apply it to trained models.
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
