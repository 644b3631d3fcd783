"""The base of cache policies, which decide which key to evict over budget.

Shapes: B batch, S slots, H heads. A slot holds one key. Whole rows
(`eviction.keep_mask`) have a slot for every position. The KV cache
(`eviction.admit`) has as many slots as its budget, and one for the new key.
Both call only `Policy.step`, so they keep the same keys.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

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
    scores: f32[B, S, ...], the policy's accumulated scores, whose last axes are
      its `score_shape`; 0 for the own key.
    budget: i32[], how many keys may stay; may be traced.
    layer: the layer's number, from 0.
    masking: f32[B, S], the query's row of F; None unless the model selects.
    logits: f32[B, H, S], F subtracted; their softmax over the held keys weighs
      the values. None unless `reads_logits`.
    tokens: the queries and keys themselves; None unless `reads_keys`.
    totals: what the policy has summed over the queries of the row, this one
      included, [B, ...] each; empty unless it has `new_totals`.
  """

  held: Bool[Array, 'B S']
  positions: Int[Array, '#B S']
  position: Int[Array, '#B']
  scores: Float[Array, 'B S *rest']
  budget: Int[Array, ''] | int
  layer: Int[Array, ''] | int
  masking: Float[Array, 'B S'] | None = None
  logits: Float[Array, 'B H S'] | None = None
  tokens: 'Tokens | None' = None
  totals: Mapping[str, Array] = {}


class Tokens(NamedTuple):
  """What a policy that `reads_keys` sees of one query and the keys.

  Attributes:
    query: [B, H, D], the query.
    keys: [B, S, H, D]; anything in slots that are not held.
    value_norms: f32[B, S, H], the Euclidean norms of the values.
    scale: multiplies the products of queries and keys.
    bias_limit: f32[B or 1, H], no bias of a logit exceeds it; 0 without one.
  """

  query: Float[Array, 'B H D']
  keys: Float[Array, 'B S H D']
  value_norms: Float[Array, 'B S H']
  scale: Float[Array, ''] | float
  bias_limit: Float[Array, '#B H'] | float = 0.0


class Step(NamedTuple):
  """What one query leaves.

  Attributes:
    kept: bool[B, S], the keys that it attends to and that stay.
    scores: f32[B, S, ...], for the next query.
    totals: [B, ...] each, for the next query.
  """

  kept: Bool[Array, 'B S']
  scores: Float[Array, 'B S *rest']
  totals: Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Policy(abc.ABC):
  """Base of the policies; a new policy mainly defines `order`.

  The query's own key and the first key of its segment are never evicted: models
  rely on attention to the first token (arXiv 2309.17453).

  Class attributes:
    reads_masking: whether it needs F, and so a model that selects.
    reads_logits: whether it needs attention logits.
    evicts_unseen: whether `accumulate` alone reads logits, and only those of
      kept keys: a step of decoding then evicts before it computes them, and
      shares them with the attention.
    reads_keys: whether it needs the queries and keys themselves.
    accumulates: whether it defines `accumulate`.
    drops_early: whether it defines `dispensable`.
    certifies: whether its totals have 'certificate', f32[B, H]: no head of the
      query gives what was dropped, all keys together, more weight than this.
    per_head: whether each head keeps keys of its own (`pool`).
  """

  reads_masking: ClassVar[bool] = False
  reads_logits: ClassVar[bool] = False
  evicts_unseen: ClassVar[bool] = False
  reads_keys: ClassVar[bool] = False
  accumulates: ClassVar[bool] = False
  drops_early: ClassVar[bool] = False
  certifies: ClassVar[bool] = False
  per_head: ClassVar[bool] = False

  @property
  def score_shape(self) -> tuple[int, ...]:
    """The shape of one key's accumulated scores; () for one number."""
    return ()

  def new_totals(
    self, batch: int, heads: int, size: int, dtype: Any
  ) -> dict[str, Array]:
    """Returns the totals before the first query, all zeros; {} for none.

    Args:
      batch: B, the first axis of each.
      heads: H.
      size: D.
      dtype: that of sums.
    """
    del batch, heads, size, dtype
    return {}

  def observe(self, view: View) -> Mapping[str, Array]:
    """Returns the totals with those of this query, before the eviction."""
    return view.totals

  def settle(self, view: View, kept: Bool[Array, 'B S']) -> Mapping[str, Array]:
    """Returns the totals after the eviction."""
    del kept
    return view.totals

  def dispensable(self, view: View) -> Bool[Array, 'B S']:
    """Returns the evictable keys that go though there is room, bool[B, S]."""
    raise NotImplementedError(f'{type(self).__name__} drops no key early')

  @abc.abstractmethod
  def order(self, view: Any) -> Float[Array, 'B S']:
    """Returns f32[B, S]; the evictable key with the largest is evicted.

    The view is a View, or `pool.Entries` of a policy that is `per_head`.
    """

  def evictable(self, view: Any) -> Bool[Array, 'B S']:
    """Returns the held keys that may be evicted, bool[B, S]."""
    is_own = view.positions == view.position[:, None]
    return view.held & ~is_own & (view.positions != 0)

  def accumulate(
    self, view: Any, kept: Bool[Array, 'B S']
  ) -> Float[Array, 'B S *rest']:
    """Returns the scores for the next query, f32[B, S, ...]."""
    del kept
    return view.scores

  def step(self, view: View) -> Step:
    """Evicts one key of each row that holds more than the budget.

    Keys that are `dispensable` go first, whatever the budget. Of keys that are
    equal in `order` it evicts the oldest.

    Args:
      view: the facts, including the query's own key; its totals are those
        after the earlier query, and are not read at a segment's first one.

    Returns:
      A Step. With a policy that `evicts_unseen` and a view without logits, its
      scores are those before the query.
    """
    view = view._replace(totals=self.observe(started(view)))
    may_go, held = self.evictable(view), view.held
    if self.drops_early:
      early = may_go & self.dispensable(view)
      may_go, held = may_go & ~early, held & ~early
    order = jnp.where(may_go, self.order(view), -jnp.inf)
    foremost = may_go & (order == jnp.max(order, axis=1, keepdims=True))
    latest = jnp.iinfo(view.positions.dtype).max
    position = jnp.where(foremost, view.positions, latest)
    goes = foremost & (position == jnp.min(position, axis=1, keepdims=True))
    is_over = jnp.sum(held, axis=1, keepdims=True) > view.budget
    kept = held & ~(goes & is_over)
    is_later = self.evicts_unseen and view.logits is None
    scores = view.scores if is_later else self.accumulate(view, kept)
    return Step(kept, scores, self.settle(view, kept))


def started(view: View) -> View:
  """Returns the view with totals of zero where a segment starts."""
  if not view.totals:
    return view
  starts = view.position == 0

  def zeroed(x):
    return jnp.where(starts.reshape(-1, *(1,) * (x.ndim - 1)), 0, x)

  return view._replace(totals=jax.tree.map(zeroed, dict(view.totals)))


def held_keys(view: View) -> Float[Array, 'B S H D']:
  """Returns the held keys in float32 or more, zero in other slots."""
  assert view.tokens is not None
  keys = view.tokens.keys
  dtype = jnp.promote_types(keys.dtype, jnp.float32)
  return jnp.where(view.held[..., None, None], keys.astype(dtype), 0)


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
