"""The certified policy: evictions with a bound on the weight that is lost.

For query i, key j and head h the logit is A_ij - F_ij with A_ij = s <q_i, k_j>
+ bias, so A_ij <= s |q_i| |k_j| + b, where b is the largest bias, and F_ij only
grows with i. Let a key j be dropped when its masking is F_j, and let Q_i be the
largest norm of the queries up to i. Then

  Z_i = sum over dropped j of exp(s Q_i |k_j| + b - F_j)

bounds what all dropped keys would add to the sum of query i's softmax, without
knowing them: Z grows by one term with each dropped key, and if Q grows by d,
each term grows by at most a factor exp(s d K), K the largest norm of a dropped
key. With S_i, the sum over the keys that are held, the dropped keys would have
at most the weight Z_i / (Z_i + S_i). That is the certificate of query i.
Source: ours; docs/certificates.md has the proof.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from selective_t5x.attention import capabilities
from selective_t5x.errors import UserError, is_integer, is_number
from selective_t5x.pruning.policy import Policy, View, held_keys


@dataclasses.dataclass(frozen=True)
class Certified(Policy):
  """Evicts keys that can no longer matter, and reports what it may have lost.

  A key goes, though there may be room, once the bound on its weight is at most
  tolerance / horizon for all heads, so that `horizon` such keys have at most
  the weight `tolerance` together. The bound takes the largest norm of the
  row's queries so far and the smallest sum S of theirs. If the budget is full,
  the key with the least bound goes, and is counted as forced if that exceeds
  tolerance / horizon.

  The certificate holds for every query, whatever its norm: of queries that
  exceed the earlier ones it may exceed the tolerance. It is about one layer's
  attention with its own queries, keys and values, and exact arithmetic. Source:
  ours; the bound is that of attention/live_keys.py, one query at a time. It
  needs a selective model with the relu, and one F for all heads.

  Gin: gin/pruning/certified.gin.

  Attributes:
    tolerance: the weight that dropped keys may have, from 0 to 1.
    horizon: among how many keys the tolerance is divided, 1 or more.
  """

  reads_masking: ClassVar[bool] = True
  reads_logits: ClassVar[bool] = True
  reads_keys: ClassVar[bool] = True
  drops_early: ClassVar[bool] = True
  certifies: ClassVar[bool] = True

  tolerance: float = 1e-3
  horizon: int = 1024

  def __post_init__(self):
    """Refuses tolerances that are no weights."""
    if not is_number(self.tolerance) or not 0 < self.tolerance < 1:
      raise UserError(
        f'pruning.Certified.tolerance = {self.tolerance!r}: expected a number '
        'above 0 and below 1'
      )
    if not is_integer(self.horizon) or self.horizon < 1:
      raise UserError(
        f'pruning.Certified.horizon = {self.horizon!r}: expected an integer of '
        '1 or more'
      )

  def new_totals(self, batch, heads, size, dtype):
    """Returns zeros: how many keys were dropped, and the parts of the bound.

    Those are dropped_count and dropped_forced [B]; by head, [B, H]: certificate
    of the latest query; dropped_log, log Z, if any key was dropped; dropped_key
    and largest_query, the largest norms; least_sum, the smallest log S.
    """
    del size
    names = 'certificate dropped_log dropped_key largest_query least_sum'
    return {
      'dropped_count': jnp.zeros((batch,), dtype),
      'dropped_forced': jnp.zeros((batch,), dtype),
      **{name: jnp.zeros((batch, heads), dtype) for name in names.split()},
    }

  def observe(self, view: View):
    """Updates the largest norm of the queries, Z with it, and the least S."""
    totals = dict(view.totals)
    before = totals['largest_query']
    norm = jnp.linalg.norm(view.tokens.query.astype(before.dtype), axis=2)
    largest = jnp.maximum(before, norm)
    factor = jnp.abs(view.tokens.scale)
    totals['dropped_log'] += factor * (largest - before) * totals['dropped_key']
    totals['largest_query'] = largest
    own = log_sum(view, view.held)
    is_first = (view.position == 0)[:, None]
    totals['least_sum'] = jnp.where(
      is_first, own, jnp.minimum(totals['least_sum'], own)
    )
    return totals

  def order(self, view: View) -> jax.Array:
    """Returns minus the log of the bound on a key's weight, f32[B, S]."""
    return -jnp.max(self._log_weights(view), axis=2)

  def dispensable(self, view: View) -> jax.Array:
    """Returns the keys whose bound is small enough, bool[B, S]."""
    return -self.order(view) <= self._log_share

  def settle(self, view: View, kept: jax.Array):
    """Adds what was dropped, and bounds its weight for this query."""
    totals = dict(view.totals)
    gone = view.held & ~kept
    forced = gone & ~self.dispensable(view)
    norms = jnp.where(gone[..., None], self._norms(view), 0)
    terms = jnp.where(gone[..., None], self._log_terms(view), -jnp.inf)
    any_before = (totals['dropped_count'] > 0)[:, None]
    before = jnp.where(any_before, totals['dropped_log'], -jnp.inf)
    log_z = jnp.logaddexp(before, jax.nn.logsumexp(terms, axis=1))
    totals['dropped_count'] += jnp.sum(gone, axis=1)
    totals['dropped_forced'] += jnp.sum(forced, axis=1)
    any_now = (totals['dropped_count'] > 0)[:, None]
    totals['dropped_log'] = jnp.where(any_now, log_z, 0)
    totals['dropped_key'] = jnp.maximum(
      totals['dropped_key'], jnp.max(norms, axis=1)
    )
    totals['certificate'] = jnp.where(
      any_now, jax.nn.sigmoid(log_z - log_sum(view, kept)), 0
    )
    return totals

  @property
  def _log_share(self) -> float:
    return math.log(self.tolerance / self.horizon)

  def _norms(self, view):
    """Returns the norms of the held keys, f32[B, S, H]."""
    return jnp.linalg.norm(held_keys(view), axis=3)

  def _log_terms(self, view):
    """Returns the log of each held key's term of Z, f32[B, S, H]."""
    limit = jnp.asarray(view.tokens.bias_limit)
    largest = view.totals['largest_query'][:, None]
    highest = jnp.abs(view.tokens.scale) * largest * self._norms(view)
    highest += limit[..., None, :] if limit.ndim else limit
    return highest - jnp.where(view.held, view.masking, 0)[..., None]

  def _log_weights(self, view):
    """Returns the log of the bound on each held key's weight, f32[B, S, H]."""
    return self._log_terms(view) - view.totals['least_sum'][:, None]


def log_sum(view: View, seen: jax.Array) -> jax.Array:
  """Returns log S, the log of the softmax's sum over the seen keys, f32[B, H].

  It is finite where a row sees no key, as in padding.
  """
  least = jnp.finfo(view.logits.dtype).min
  return jax.nn.logsumexp(jnp.where(seen[:, None], view.logits, least), axis=2)


def check_grows(attention_fn: Callable[..., Any], heads: int) -> None:
  """Refuses an attention function whose F may fall, or that has several.

  It computes F of four tokens whose logits are all negative.

  Raises:
    UserError: if there is no bound on the weight of a dropped key.
  """
  with jax.ensure_compile_time_eval():
    ones = jnp.ones((1, 4, heads, 1))
    *_, masking = attention_fn(-ones, ones, ones, return_masking=True)
    name = capabilities.name(attention_fn)
    if masking.ndim == 4:
      raise UserError(
        f'pruning.Certified: the heads of the attention function ({name}) have '
        'several F, but a key is dropped for all heads together: expected one '
        'F, e.g. gin/attention/selective.gin'
      )
    if np.any(np.asarray(masking) < 0):
      raise UserError(
        f'pruning.Certified: F of the attention function ({name}) may fall, so '
        'that a dropped key could get weight again: expected relu = True'
      )
