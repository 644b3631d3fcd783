"""The paper's policy, which evicts the key that selection masks most."""

import dataclasses
from typing import ClassVar

import jax

from selective_t5x.pruning.policy import Policy, View


@dataclasses.dataclass(frozen=True)
class Selective(Policy):
  """Evicts the key with the largest F.

  Source: arXiv 2410.02703, section 4. An evicted key cannot return, and F is
  only summed for held keys. This changes nothing: a query's selection of a key
  does not depend on other keys. Where G > 1 heads select, the policy reads the
  mean of their F, as all heads share one kept set. It needs a selective model.

  Gin: gin/pruning/selective.gin.
  """

  reads_masking: ClassVar[bool] = True

  def order(self, view: View) -> jax.Array:
    """Returns F, f32[B, S]."""
    return view.masking
