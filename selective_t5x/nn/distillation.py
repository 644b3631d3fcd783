"""Trains the gates of a frozen model to keep its predictions."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics

from selective_t5x import attention
from selective_t5x.errors import UserError
from selective_t5x.nn import model_copies
from t5x import losses


class DistillationMixin:
  """Replaces the cross entropy by the distance to the model without gates.

  The teacher is the model itself with plain attention and no extension. Per
  token the loss is the Kullback-Leibler divergence of the model's prediction
  from the teacher's; the memory loss comes on top. Only the parameters of
  extensions get gradients. Source: logit distillation as in arXiv 2506.05345
  and arXiv 2512.03324. Differs from them: the teacher's attention is causal
  attention of the same parameters, and no cross entropy is added.

  List it after the other mixins and before the model's class. The metric
  `distillation/divergence` is the divergence, the mean over target tokens;
  `cross_ent_loss` stays T5X's.

  Gin: gin/attention/distil_gates.gin.
  """

  def set_distillation(self, distils: bool) -> None:
    """Turns it on or off; the constructor calls it.

    Raises:
      UserError: if there is no extension to train.
    """
    name = f'models.{type(self).__name__}.distil_gates'
    if not isinstance(distils, bool):
      raise UserError(f'{name} = {distils!r}: expected True or False')
    if distils and self.module.config.attention_extension is None:
      raise UserError(
        f'{name} = True, but the network has no gates to train: use '
        'gin/attention/retention.gin or gin/attention/delayed_eviction.gin'
      )
    self._distils = distils

  def loss_fn(
    self,
    params: Any,
    batch: Mapping[str, jax.Array],
    dropout_rng: jax.Array | None,
  ) -> tuple[jax.Array, Mapping[str, clu_metrics.Metric]]:
    """Returns (loss, metrics) as T5X does; no dropout without dropout_rng."""
    loss, measured = super().loss_fn(params, batch, dropout_rng)
    if not self._distils:
      return loss, measured
    # The logits that TokenLossMixin has computed.
    logits = self._compute_logits(params, batch, dropout_rng)
    student = jax.nn.log_softmax(logits.astype(jnp.float32))
    teacher = jax.nn.log_softmax(
      self._teacher_logits(params, batch).astype(jnp.float32)
    )
    teacher = jax.lax.stop_gradient(teacher)
    divergence = jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)
    normalizer, weights = losses.get_loss_normalizing_factor_and_weights(
      self._loss_normalizing_factor, batch
    )
    if weights is None:
      weights = jnp.ones(divergence.shape)
    total = jnp.sum(divergence * weights)
    loss = total if normalizer is None else total / normalizer
    minimised = ['loss']
    minimised += [name for name in measured if name.startswith('loss_per_')]
    return loss, {
      **measured,
      **{name: measured[name].replace(total=loss) for name in minimised},
      'distillation/divergence': clu_metrics.Average(
        total=total, count=jnp.sum(weights)
      ),
    }

  def _teacher_logits(self, params, batch):
    """Returns the logits of plain attention, f32[B, N, V]."""
    teacher = model_copies.with_config(
      self,
      attention_fn=attention.causal_attention,
      attention_extension=None,
    )
    # The copy has the student's logits in place of its method.
    return type(self)._compute_logits(teacher, params, batch)


def only_extensions(params: Any) -> Any:
  """Returns the parameters; those of extensions alone get gradients."""

  def freeze(path, x):
    names = [getattr(key, 'key', None) for key in path]
    return x if 'extension' in names else jax.lax.stop_gradient(x)

  return jax.tree_util.tree_map_with_path(freeze, params)
