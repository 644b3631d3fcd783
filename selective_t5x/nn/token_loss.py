"""The plain cross entropy per token, a metric that is the same in every run.

The embedded engine's models compute it; on the real T5X the suite's models do.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics

from selective_t5x.nn import model_copies
from t5x import losses

# The name of the embedded engine's metric, t5x.model_metrics.TOKEN_LOSS.
TOKEN_LOSS = 'cross_entropy_per_token'


class TokenLossMixin:
  """Adds TOKEN_LOSS to a T5X model's metrics; list it before the model's class.

  The metric is the cross entropy of the targets in nats, summed over tokens
  with their loss weights and divided by the sum of the weights. Label
  smoothing, z-loss, memory loss and the normalising factor do not change it,
  nor does the batch size over a whole data set. T5X's own metrics do not report
  it with label smoothing, and with NUM_REAL_TARGET_TOKENS or
  AVERAGE_PER_SEQUENCE they are means over batches.
  """

  def loss_fn(
    self,
    params: Any,
    batch: Mapping[str, jax.Array],
    dropout_rng: jax.Array | None,
  ) -> tuple[jax.Array, Mapping[str, clu_metrics.Metric]]:
    """Returns (loss, metrics) as T5X does; no dropout without dropout_rng."""
    logits = self._compute_logits(params, batch, dropout_rng)
    loss, metrics = super(
      TokenLossMixin, model_copies.with_logits(self, logits)
    ).loss_fn(params, batch, dropout_rng)
    if TOKEN_LOSS in metrics:
      return loss, metrics
    targets = batch['decoder_target_tokens']
    weights = batch.get('decoder_loss_weights')
    if weights is None:
      weights = jnp.asarray(targets > 0, jnp.float32)
    total, _, weight_sum = losses.compute_weighted_cross_entropy(
      logits, targets, weights
    )
    average = clu_metrics.Average(total=total, count=weight_sum)
    return loss, {**metrics, TOKEN_LOSS: average}
