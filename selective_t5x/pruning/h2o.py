"""The H2O policy keeps recent keys and those with the most attention."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from selective_t5x.pruning.policy import Policy, View, mean_weights


@dataclasses.dataclass(frozen=True)
class H2O(Policy):
  """Evicts the key with the least attention, except for recent ones.

  The last ceil(K / 2) keys are recent, including the query's own. Attention is
  the sum of the weights from earlier queries, each after its own eviction.
  Source: Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative
  Inference of Large Language Models", arXiv 2306.14048. Differs from it: all
  heads share one kept set, by the mean of their weights (there each head has
  its own); the first key always stays.

  Gin: gin/pruning/h2o.gin.
  """

  reads_logits: ClassVar[bool] = True
  evicts_unseen: ClassVar[bool] = True
  accumulates: ClassVar[bool] = True

  def order(self, view: View) -> jax.Array:
    """Returns minus the accumulated attention, f32[B, S]."""
    return -view.scores

  def evictable(self, view: View) -> jax.Array:
    """Returns the evictable keys that are not recent, bool[B, S]."""
    recent = (view.budget + 1) // 2
    age = view.position[:, None] - view.positions
    return super().evictable(view) & (age >= recent)

  def accumulate(self, view: View, kept: jax.Array) -> jax.Array:
    """Adds the weights of this query, f32[B, S]."""
    weights = mean_weights(view.logits, kept)
    return jnp.where(kept, view.scores + weights, 0)
