"""Models as T5X's users write them: losses, metrics, mutable collections."""

import clu.metrics
import clu.values
import flax
import jax.numpy as jnp
from flax.linen.partitioning import AxisMetadata

from t5x import metrics as metrics_lib
from t5x import models
from tests.engine import tiny


@flax.struct.dataclass
class Remark(clu.metrics.Metric):
  """A metric that is a text."""

  def merge(self, other):
    return other

  def compute_value(self):
    return clu.values.Text('as always')


class PenalisedModel(models.DecoderOnlyModel):
  """A loss of one's own, on top of T5X's, and more metrics."""

  def loss_fn(self, params, batch, dropout_rng):
    loss, metrics = super().loss_fn(params, batch, dropout_rng)
    penalty = 0.01 * jnp.sum(jnp.square(params['token_embedder']['embedding']))
    metrics['penalty'] = metrics_lib.AveragePerStep(total=penalty)
    metrics['loss'] = metrics_lib.AveragePerStep(total=loss + penalty)
    metrics['remark'] = Remark()
    return loss + penalty, metrics

  def _compute_metrics(
    self, logits, targets, mask, loss, z_loss=None, segment_ids=None
  ):
    metrics = super()._compute_metrics(
      logits, targets, mask, loss, z_loss, segment_ids
    )
    metrics['largest_logit'] = metrics_lib.AveragePerStep(total=jnp.max(logits))
    return metrics


class OwnLossModel(models.DecoderOnlyModel):
  """A loss without T5X's, whose metrics have other names."""

  def loss_fn(self, params, batch, dropout_rng):
    logits = self._compute_logits(params, batch, dropout_rng)
    right = models.compute_weighted_accuracy(
      logits, batch['decoder_target_tokens'], batch['decoder_loss_weights']
    )
    loss = jnp.mean(jnp.square(logits - 1.0))
    metrics = {
      'squares': metrics_lib.AveragePerStep(total=loss),
      'right': metrics_lib.Sum(right),
    }
    return loss, metrics


class CountingModel(models.DecoderOnlyModel):
  """A model with a mutable collection: it counts tokens."""

  def get_initial_variables(self, rng, input_shapes, input_types=None):
    variables = super().get_initial_variables(rng, input_shapes, input_types)
    return flax.core.freeze(
      {
        **variables,
        'counters': {'tokens': jnp.zeros((), jnp.float32)},
        'counters_axes': {'tokens_axes': AxisMetadata(names=())},
      }
    )

  def loss_fn(self, params, batch, dropout_rng, flax_mutables=None):
    loss, metrics = super().loss_fn(params, batch, dropout_rng)
    if flax_mutables is None:
      return loss, metrics
    seen = flax_mutables['counters']['tokens'] + jnp.sum(
      batch['decoder_loss_weights']
    )
    metrics['tokens_seen'] = metrics_lib.AveragePerStep(total=seen)
    return loss, (metrics, flax.core.freeze({'counters': {'tokens': seen}}))

  def eval_fn(self, params, batch, flax_mutables=None):
    loss, (metrics, _) = self.loss_fn(params, batch, None, flax_mutables)
    return loss, metrics


def own_loss_and_metrics():
  """T5X's loss with a penalty, and metrics of several types."""
  return {'model': tiny.model(cls=PenalisedModel)}


def own_metrics_alone():
  """Another loss, without a metric 'loss'."""
  return {'model': tiny.model(cls=OwnLossModel)}


def mutables():
  """A train state with flax_mutables."""
  return {'model': tiny.model(cls=CountingModel)}
