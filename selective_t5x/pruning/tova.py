"""The TOVA policy evicts the key that the current query attends to least."""

import dataclasses
from typing import ClassVar

import jax

from selective_t5x.pruning.policy import Policy, View, mean_weights


@dataclasses.dataclass(frozen=True)
class TOVA(Policy):
  """Evicts the key with the least attention weight from the current query.

  The weights are over all held keys and the query's own, before eviction; their
  mean over heads counts. Source: Oren et al., "Transformers are Multi-State
  RNNs", arXiv 2401.06104. Differs from it: the query attends after the eviction
  (there before); its own key and the first always stay.

  Gin: gin/pruning/tova.gin.
  """

  reads_logits: ClassVar[bool] = True

  def order(self, view: View) -> jax.Array:
    """Returns minus the weights, f32[B, S]."""
    return -mean_weights(view.logits, view.held)
