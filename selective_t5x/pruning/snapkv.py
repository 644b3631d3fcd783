"""The SnapKV policy: the last queries vote for keys and their neighbours."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from selective_t5x.errors import UserError, is_integer
from selective_t5x.pruning.policy import Policy, View, mean_weights


@dataclasses.dataclass(frozen=True)
class SnapKV(Policy):
  """Evicts the key with the fewest votes of an observation window.

  A key's vote is the sum of the attention weights that the last W queries gave
  it, each after its own eviction. Votes are max-pooled: a key has the largest
  vote of the held keys within `kernel` positions around it, so that a phrase
  stays or goes as a whole. The last min(W, ceil(K / 2)) keys are protected.
  Source: Li et al., "SnapKV: LLM Knows What You are Looking for Before
  Generation", arXiv 2404.14469. Differs from it: keys are evicted one by one
  along the sequence, so that decoding is pruned too (there once, at the end of
  the prompt); all heads share one kept set, by the mean of their weights (there
  each head has its own); the first key always stays.

  Gin: gin/pruning/snapkv.gin.

  Attributes:
    window: W, the number of queries that vote, 1 or more.
    kernel: how many positions the pooling spans, an odd number.
  """

  reads_logits: ClassVar[bool] = True
  evicts_unseen: ClassVar[bool] = True
  accumulates: ClassVar[bool] = True

  window: int = 16
  kernel: int = 7

  def __post_init__(self):
    """Refuses windows that observe nothing, and even kernels."""
    if not is_integer(self.window) or self.window < 1:
      raise UserError(
        f'pruning.SnapKV.window = {self.window!r}: expected an integer of 1 or '
        'more'
      )
    if not is_integer(self.kernel) or self.kernel < 1 or self.kernel % 2 == 0:
      raise UserError(
        f'pruning.SnapKV.kernel = {self.kernel!r}: expected an odd integer of '
        '1 or more'
      )

  @property
  def score_shape(self) -> tuple[int, ...]:
    """(W,): the weights from the last W queries, a ring."""
    return (self.window,)

  def order(self, view: View) -> jax.Array:
    """Returns minus the pooled votes, f32[B, S]."""
    votes = jnp.where(view.held, jnp.sum(view.scores, axis=2), 0)
    return -_max_pooled(votes, view, self.kernel // 2)

  def evictable(self, view: View) -> jax.Array:
    """Returns the evictable keys outside the window, bool[B, S]."""
    recent = jnp.minimum(self.window, (view.budget + 1) // 2)
    age = view.position[:, None] - view.positions
    return super().evictable(view) & (age >= recent)

  def accumulate(self, view: View, kept: jax.Array) -> jax.Array:
    """Replaces the oldest query's weights by this one's, f32[B, S, W]."""
    weights = mean_weights(view.logits, kept)
    now = jnp.arange(self.window) == view.position[:, None] % self.window
    scores = jnp.where(now[:, None], weights[..., None], view.scores)
    return jnp.where(kept[..., None], scores, 0)


def _max_pooled(votes, view, radius):
  """Returns the largest vote of the held keys within a radius, f32[B, S].

  Slots may be in any order. In the order of positions, keys within a radius of
  r positions are at most r places apart.
  """
  if not radius:
    return votes
  far = jnp.iinfo(jnp.int32).max // 2
  positions = jnp.where(view.held, view.positions, far)
  positions = positions.astype(jnp.int32)
  slots = jnp.broadcast_to(jnp.arange(votes.shape[1]), votes.shape)
  positions, votes, slots = jax.lax.sort(
    (positions, votes, slots), dimension=1, num_keys=1
  )
  pooled = votes
  for places in range(1, min(radius, votes.shape[1] - 1) + 1):
    near = positions[:, places:] - positions[:, :-places] <= radius
    later = jnp.where(near, votes[:, places:], 0)
    earlier = jnp.where(near, votes[:, :-places], 0)
    none = ((0, 0), (0, places))
    pooled = jnp.maximum(pooled, jnp.pad(later, none))
    pooled = jnp.maximum(pooled, jnp.pad(earlier, (none[0], none[1][::-1])))
  _, pooled = jax.lax.sort((slots, pooled), dimension=1, num_keys=1)
  return pooled
