"""The AdaKV policy: heads keep keys of their own and share one budget."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from selective_t5x.errors import UserError, is_integer, is_number
from selective_t5x.pruning import pool
from selective_t5x.pruning.policy import Policy


@dataclasses.dataclass(frozen=True)
class AdaKV(Policy):
  """Evicts the keys with the fewest votes among those of all heads.

  A budget of K keys stands for H * K keys of single heads. A key's vote is the
  sum of the attention weights that its head gave it in the last W queries, each
  after its own evictions, so heads that spread their attention hold more keys
  than heads that focus. Every head keeps its last ceil(floor * K) keys and its
  first. Source: Feng et al., "Ada-KV: Optimizing KV Cache Eviction by Adaptive
  Budget Allocation for Efficient LLM Inference", arXiv 2407.11550, with
  SnapKV's votes. Differs from it: keys are evicted along the sequence, so the
  heads' shares follow the text (there they are set once, at the end of the
  prompt); the floor of each head are its latest keys (there those with the most
  votes); votes are not pooled over neighbours; the first key always stays. For
  plain attention: where a head selects for others, its keys must be those that
  they keep.

  Gin: gin/pruning/adakv.gin.

  Attributes:
    window: W, the number of queries that vote, 1 or more.
    floor: the share of the budget that no head can lose, above 0, at most 0.5.
  """

  reads_logits: ClassVar[bool] = True
  accumulates: ClassVar[bool] = True
  per_head: ClassVar[bool] = True

  window: int = 16
  floor: float = 0.2

  def __post_init__(self):
    """Refuses settings that would leave a head without keys."""
    if not is_integer(self.window) or self.window < 1:
      raise UserError(
        f'pruning.AdaKV.window = {self.window!r}: expected an integer of 1 or '
        'more'
      )
    if not is_number(self.floor) or not 0 < self.floor <= 0.5:
      raise UserError(
        f'pruning.AdaKV.floor = {self.floor!r}: expected a number above 0, at '
        'most 0.5'
      )

  @property
  def score_shape(self) -> tuple[int, ...]:
    """(W,): the weights from the last W queries, a ring."""
    return (self.window,)

  def order(self, view: pool.Entries) -> jax.Array:
    """Returns minus the votes, f32[B, E]."""
    return -jnp.sum(view.scores, axis=2)

  def evictable(self, view: pool.Entries) -> jax.Array:
    """Returns the held entries outside every head's floor, bool[B, E]."""
    recent = self.recent(view.budget)
    age = view.position[:, None] - view.positions
    return view.held & (age >= recent) & (view.positions != 0)

  def recent(self, budget: jax.Array | int) -> jax.Array | int:
    """Returns ceil(floor * K), the latest keys that every head keeps."""
    # A product may come out just above a whole number.
    share = self.floor * budget - 1e-4
    if isinstance(budget, int):
      return math.ceil(share)
    return jnp.ceil(share).astype(jnp.int32)

  def accumulate(self, view: pool.Entries, kept: jax.Array) -> jax.Array:
    """Replaces the oldest query's weights by this one's, f32[B, E, W]."""
    weights = pool.weights(view, kept)
    now = jnp.arange(self.window) == view.position[:, None] % self.window
    scores = jnp.where(now[:, None], weights[..., None], view.scores)
    return jnp.where(kept[..., None], scores, 0)
