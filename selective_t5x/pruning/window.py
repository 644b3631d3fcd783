"""The sliding window policy with a sink: the first and the last keys stay."""

import dataclasses

import jax
import jax.numpy as jnp

from selective_t5x.pruning.policy import Policy, View


@dataclasses.dataclass(frozen=True)
class Window(Policy):
  """Keeps the first key of the segment and the last K - 1.

  Source: Xiao et al., "Efficient Streaming Language Models with Attention
  Sinks", arXiv 2309.17453. Differs from it: there is one sink (there four), and
  keys keep their original positions (there positions are those in the cache).

  Gin: gin/pruning/window.gin.
  """

  def order(self, view: View) -> jax.Array:
    """Returns zeros, f32[B, S]: of equal keys the oldest is evicted."""
    return jnp.zeros_like(view.scores)
