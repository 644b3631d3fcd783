"""The ExpectedAttention policy estimates the weights of queries to come."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from selective_t5x.errors import UserError, is_number
from selective_t5x.pruning.policy import Policy, View, held_keys


@dataclasses.dataclass(frozen=True)
class ExpectedAttention(Policy):
  """Evicts the key that queries like the earlier ones would use least.

  If queries are normal with mean m and variances v, the mean of exp(s <q, k>)
  is exp(s <m, k> + s^2 / 2 <v, k^2>), s the scale of the logits. These are
  divided by their sum over the held keys. A key's use is this weight plus
  epsilon, times the norm of its value, the mean over heads. m and v are those
  of the row's queries so far. Source: Devoto, Jeblick, Jegou, "Expected
  Attention: KV Cache Compression by Estimating Attention from Future Queries
  Distribution", arXiv 2510.00636. Differs from it: variances in place of a
  covariance matrix, which would take the memory of D keys a head; keys are
  evicted one by one, with the statistics of all queries so far; F is subtracted
  where the model selects; relative biases are not read, and there are no rotary
  positions to average over; the value's norm is that before the output
  projection; all heads share one kept set (there each has its own); the first
  key always stays.

  Gin: gin/pruning/expectedattention.gin.

  Attributes:
    epsilon: added to the weights, zero or more: the larger, the more the norm
      of the value counts.
  """

  reads_keys: ClassVar[bool] = True

  epsilon: float = 0.02

  def __post_init__(self):
    """Refuses an epsilon that is no number of zero or more."""
    if not is_number(self.epsilon) or not self.epsilon >= 0:
      raise UserError(
        f'pruning.ExpectedAttention.epsilon = {self.epsilon!r}: expected a '
        'number, zero or more'
      )

  def new_totals(self, batch, heads, size, dtype):
    """Returns the mean and the sum of squared deviations, [B, H, D]."""
    zeros = jnp.zeros((batch, heads, size), dtype)
    return {'query_mean': zeros, 'query_squares': zeros}

  def observe(self, view: View):
    """Updates both by Welford's method."""
    mean, squares = view.totals['query_mean'], view.totals['query_squares']
    query = view.tokens.query.astype(mean.dtype)
    off = query - mean
    mean += off / (view.position + 1).astype(mean.dtype)[:, None, None]
    return {'query_mean': mean, 'query_squares': squares + off * (query - mean)}

  def order(self, view: View) -> jax.Array:
    """Returns minus the expected use, f32[B, S]."""
    keys, scale = held_keys(view), view.tokens.scale
    mean, squares = view.totals['query_mean'], view.totals['query_squares']
    count = (view.position + 1).astype(mean.dtype)[:, None, None]
    variance = squares / count
    logits = scale * jnp.einsum('bhd,bshd->bsh', mean, keys)
    logits += scale**2 / 2 * jnp.einsum('bhd,bshd->bsh', variance, keys**2)
    if view.masking is not None:
      logits -= jnp.where(view.held, view.masking, 0)[..., None]
    held = view.held[..., None]
    logits = jnp.where(held, logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits, axis=1)
    use = (weights + self.epsilon) * jnp.where(held, view.tokens.value_norms, 0)
    return -jnp.mean(use, axis=2)
