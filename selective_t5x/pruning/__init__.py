"""Context pruning: policies that decide which keys stay in a KV cache.

This package imports pure functions of arrays. The commands `search` and
`frontier` apply them to trained models.
"""

from selective_t5x.pruning.adakv import AdaKV
from selective_t5x.pruning.certified import Certified
from selective_t5x.pruning.config import Pruning, Share
from selective_t5x.pruning.eviction import keep_mask
from selective_t5x.pruning.expected_attention import ExpectedAttention
from selective_t5x.pruning.h2o import H2O
from selective_t5x.pruning.keydiff import KeyDiff
from selective_t5x.pruning.policy import Policy, View
from selective_t5x.pruning.random import Random
from selective_t5x.pruning.selective import Selective
from selective_t5x.pruning.snapkv import SnapKV
from selective_t5x.pruning.threshold import Threshold
from selective_t5x.pruning.tova import TOVA
from selective_t5x.pruning.whole_rows import Pruned, pruned_attention
from selective_t5x.pruning.window import Window

__all__ = [
  'AdaKV',
  'Certified',
  'ExpectedAttention',
  'H2O',
  'KeyDiff',
  'TOVA',
  'Policy',
  'Pruned',
  'Pruning',
  'Random',
  'Selective',
  'Share',
  'SnapKV',
  'Threshold',
  'View',
  'Window',
  'keep_mask',
  'pruned_attention',
]
