"""The paper's own policy: what selection has masked most goes first."""

import dataclasses
from typing import ClassVar

import jax

from selective_t5x.pruning.policy import Policy, View


@dataclasses.dataclass(frozen=True)
class Selective(Policy):
  """Evicts the key with the largest F.

  Source: arXiv 2410.02703, section 4. A key that was evicted cannot come back,
  and F is summed for held keys alone, which changes nothing: a query's
  selection of a key does not depend on other keys. Where G > 1 heads select,
  it goes by the mean of their F: all heads share one kept set. Needs a
  selective model.

  Gin: gin/pruning/selective.gin.
  """

  reads_masking: ClassVar[bool] = True

  def order(self, view: View) -> jax.Array:
    """Returns F, f32[B, S]."""
    return view.masking
