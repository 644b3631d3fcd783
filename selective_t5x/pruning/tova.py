"""TOVA: the key that the current query heeds least goes."""

import dataclasses
from typing import ClassVar

import jax

from selective_t5x.pruning.policy import Policy, View, mean_weights


@dataclasses.dataclass(frozen=True)
class TOVA(Policy):
  """Evicts the key with the least weight of the query that is served.

  The weights are those over all held keys and its own, before eviction, the
  mean over heads. Source: Oren et al., "Transformers are Multi-State RNNs",
  arXiv 2401.06104. Differs from it: the query attends after the eviction (there
  before); its own key and the first always stay.

  Gin: gin/pruning/tova.gin.
  """

  reads_logits: ClassVar[bool] = True

  def order(self, view: View) -> jax.Array:
    """Returns the weights, negative, f32[B, S]."""
    return -mean_weights(view.logits, view.held)
