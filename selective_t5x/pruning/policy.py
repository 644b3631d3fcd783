"""What a cache policy is: which key goes when more are held than a budget.

Shapes: B batch, S slots, H heads. A slot holds one key. Whole rows
(`eviction.keep_mask`) have a slot for every position, the decoding cache
(`eviction.admit`) has as many as its budget and one for the key that comes.
Both call `Policy.step` and nothing else of a policy, so they keep the same
keys.
"""

import abc
import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp


class View(NamedTuple):
  """What a policy may look at as a query is served, before anything goes.

  Slots that are not held may hold anything, NaN too.

  Attributes:
    held: bool[B, S], the query's own key among them.
    positions: i32[B, S], of the keys in their segment, from 0.
    position: i32[B], of the query, and of its own key.
    scores: f32[B, S], what the policy has accumulated; 0 for the own key.
    budget: i32[], keys that may stay; may be traced.
    layer: the layer's number, from 0.
    masking: f32[B, S], the query's row of F; None unless `reads_masking`.
    logits: f32[B, H, S], those whose softmax over the held keys weighs the
      values, F subtracted; None unless `reads_logits`.
  """

  held: jax.Array
  positions: jax.Array
  position: jax.Array
  scores: jax.Array
  budget: jax.Array | int
  layer: int
  masking: jax.Array | None = None
  logits: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Policy(abc.ABC):
  """Base of the policies. A new one writes `order`, and little else.

  Never evicted are the query's own key and the first of its segment: attention
  to the first token is what a model rests on (arXiv 2309.17453).

  Class attributes:
    reads_masking: whether F is needed, so that the model must select.
    reads_logits: whether attention logits are needed.
    accumulates: whether `accumulate` does anything.
  """

  reads_masking: ClassVar[bool] = False
  reads_logits: ClassVar[bool] = False
  accumulates: ClassVar[bool] = False

  @abc.abstractmethod
  def order(self, view: View) -> jax.Array:
    """Returns f32[B, S]: the evictable key with the largest goes first."""

  def evictable(self, view: View) -> jax.Array:
    """Returns bool[B, S], the held keys that may go."""
    is_own = view.positions == view.position[:, None]
    return view.held & ~is_own & (view.positions != 0)

  def accumulate(self, view: View, kept: jax.Array) -> jax.Array:
    """Returns the scores that the next query finds, f32[B, S]."""
    del kept
    return view.scores

  def step(self, view: View) -> tuple[jax.Array, jax.Array]:
    """Evicts one key of each row that holds more than the budget.

    Of keys that are equal in `order` the oldest goes.

    Args:
      view: what is held, the query's own key included.

    Returns:
      bool[B, S], the keys that the query attends to and that are held on, and
      the scores, f32[B, S].
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


def mean_weights(logits: jax.Array, seen: jax.Array) -> jax.Array:
  """Returns the attention weights of the seen keys, the mean over heads.

  Args:
    logits: f32[B, H, S].
    seen: bool[B, S].

  Returns:
    f32[B, S], 0 for other keys.
  """
  seen = seen[:, None]
  # Finite, for rows that see no key.
  logits = jnp.where(seen, logits, jnp.finfo(logits.dtype).min)
  return jnp.mean(jnp.where(seen, jax.nn.softmax(logits), 0), axis=1)
