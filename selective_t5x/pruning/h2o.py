"""H2O: recent keys and those that have got most attention stay."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from selective_t5x.pruning.policy import Policy, View, mean_weights


@dataclasses.dataclass(frozen=True)
class H2O(Policy):
  """Evicts the key with the least attention, the recent ones apart.

  Recent are the last ceil(K / 2) keys, the query's own among them. Attention is
  the sum of the weights that earlier queries gave, each after its own eviction.
  Source: Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative
  Inference of Large Language Models", arXiv 2306.14048. Differs from it: one
  kept set for all heads, by the mean of their weights (there one a head); the
  first key always stays.

  Gin: gin/pruning/h2o.gin.
  """

  reads_logits: ClassVar[bool] = True
  accumulates: ClassVar[bool] = True

  def order(self, view: View) -> jax.Array:
    """Returns the accumulated attention, negative, f32[B, S]."""
    return -view.scores

  def evictable(self, view: View) -> jax.Array:
    """Returns bool[B, S]: what may go and is not recent."""
    recent = (view.budget + 1) // 2
    age = view.position[:, None] - view.positions
    return super().evictable(view) & (age >= recent)

  def accumulate(self, view: View, kept: jax.Array) -> jax.Array:
    """Adds the weights of this query, f32[B, S]."""
    weights = mean_weights(view.logits, kept)
    return jnp.where(kept, view.scores + weights, 0)
