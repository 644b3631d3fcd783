"""The threshold policy keeps a key while its masking is below a limit."""

import dataclasses
from typing import ClassVar

import jax

from selective_t5x.errors import UserError, is_number
from selective_t5x.pruning.selective import Selective


@dataclasses.dataclass(frozen=True)
class Threshold(Selective):
  """Evicts every key whose F has reached a limit, and the largest F if full.

  One limit serves all layers, heads and texts: a layer holds as many keys as
  its text needs, up to the budget. Source: ours, after arXiv 2410.02703,
  section 4, which sets the number of keys instead. It needs a selective model.

  Gin: gin/pruning/threshold.gin.

  Attributes:
    limit: theta: a key stays while F < theta; positive.
  """

  drops_early: ClassVar[bool] = True

  limit: float = 4.0

  def __post_init__(self):
    """Refuses a limit that would drop keys that nothing masks."""
    if not is_number(self.limit) or not self.limit > 0:
      raise UserError(
        f'pruning.Threshold.limit = {self.limit!r}: expected a positive number'
      )

  def dispensable(self, view) -> jax.Array:
    """Returns the keys with F >= theta, bool[B, S]."""
    return view.masking >= self.limit
