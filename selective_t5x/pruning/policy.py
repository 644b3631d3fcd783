"""The base of cache policies, which decide which key to evict over budget.

Shapes: B batch, S slots, H heads. A slot holds one key. Whole rows
(`eviction.keep_mask`) have a slot for every position. The KV cache
(`eviction.admit`) has as many slots as its budget, and one for the new key.
Both call only `Policy.step`, so they keep the same keys.
"""

import abc
import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from selective_t5x.attention.arrays import Array


class View(NamedTuple):
  """The facts that a policy sees at one query, before the eviction.

  Slots that are not held may hold anything, even NaN.

  Attributes:
    held: bool[B, S], which slots hold a key, including the query's own.
    positions: i32[B, S], positions of the keys in their segment, from 0.
    position: i32[B], the position of the query and its own key.
    scores: f32[B, S], the policy's accumulated scores; 0 for the own key.
    budget: i32[], how many keys may stay; may be traced.
    layer: the layer's number, from 0.
    masking: f32[B, S], the query's row of F; None unless `reads_masking`.
    logits: f32[B, H, S], F subtracted; their softmax over the held keys weighs
      the values. None unless `reads_logits`.
  """

  held: Bool[Array, 'B S']
  positions: Int[Array, '#B S']
  position: Int[Array, '#B']
  scores: Float[Array, 'B S']
  budget: Int[Array, ''] | int
  layer: Int[Array, ''] | int
  masking: Float[Array, 'B S'] | None = None
  logits: Float[Array, 'B H S'] | None = None


@dataclasses.dataclass(frozen=True)
class Policy(abc.ABC):
  """Base of the policies; a new policy mainly defines `order`.

  The query's own key and the first key of its segment are never evicted: models
  rely on attention to the first token (arXiv 2309.17453).

  Class attributes:
    reads_masking: whether it needs F, and so a model that selects.
    reads_logits: whether it needs attention logits.
    accumulates: whether it defines `accumulate`.
  """

  reads_masking: ClassVar[bool] = False
  reads_logits: ClassVar[bool] = False
  accumulates: ClassVar[bool] = False

  @abc.abstractmethod
  def order(self, view: View) -> Float[Array, 'B S']:
    """Returns f32[B, S]; the evictable key with the largest is evicted."""

  def evictable(self, view: View) -> Bool[Array, 'B S']:
    """Returns the held keys that may be evicted, bool[B, S]."""
    is_own = view.positions == view.position[:, None]
    return view.held & ~is_own & (view.positions != 0)

  def accumulate(
    self, view: View, kept: Bool[Array, 'B S']
  ) -> Float[Array, 'B S']:
    """Returns the scores for the next query, f32[B, S]."""
    del kept
    return view.scores

  def step(self, view: View) -> tuple[Bool[Array, 'B S'], Float[Array, 'B S']]:
    """Evicts one key of each row that holds more than the budget.

    Of keys that are equal in `order` it evicts the oldest.

    Args:
      view: the facts, including the query's own key.

    Returns:
      bool[B, S], the keys that the query attends to and that stay, and the
      scores, f32[B, S].
    """
    may_go = self.evictable(view)
    order = jnp.where(may_go, self.order(view), -jnp.inf)
    foremost = may_go & (order == jnp.max(order, axis=1, keepdims=True))
    latest = jnp.iinfo(view.positions.dtype).max
    position = jnp.where(foremost, view.positions, latest)
    goes = foremost & (position == jnp.min(position, axis=1, keepdims=True))
    is_over = jnp.sum(view.held, axis=1, keepdims=True) > view.budget
    kept = view.held & ~(goes & is_over)
    return kept, self.accumulate(view, kept)


def mean_weights(
  logits: Float[Array, 'B H S'], seen: Bool[Array, 'B S']
) -> Float[Array, 'B S']:
  """Returns the mean attention weights over heads, of the seen keys.

  Args:
    logits: f32[B, H, S].
    seen: bool[B, S].

  Returns:
    f32[B, S], 0 for other keys.
  """
  seen = seen[:, None]
  # The minimum is finite for rows that see no key.
  logits = jnp.where(seen, logits, jnp.finfo(logits.dtype).min)
  return jnp.mean(jnp.where(seen, jax.nn.softmax(logits), 0), axis=1)
