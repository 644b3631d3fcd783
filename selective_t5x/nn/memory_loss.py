"""The paper's memory loss, for T5X models of both kinds.

Source: arXiv 2410.02703, section 5.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics
from flax import traverse_util

from selective_t5x.attention import capabilities, memory
from selective_t5x.errors import UserError, is_number
from selective_t5x.nn import model_copies
from t5x import losses


class MemoryLossMixin:
  """Adds the memory loss to a T5X model; list it before the model's class.

  The memory loss trains selection to leave few tokens visible, so that the
  others can be pruned. Per token

    loss = cross_entropy + memory_loss_weight * R

  with R from `attention.memory.fraction_visible` over the decoder's layers. T5X
  sums over tokens and divides by loss_normalizing_factor, so this adds
  memory_loss_weight * R * (sum of loss weights) / loss_normalizing_factor to
  the batch's loss.

  Metrics: `loss` and `loss_per_*` include the memory loss, `cross_ent_loss`
  does not, `memory/fraction_visible` is R, `memory/visible_tokens_layer_<l>` is
  the mean of layer l's M over real tokens. With weight 0 the model is T5X's and
  computes none of this.

  Gin: gin/attention/memory_loss.gin.
  """

  def set_memory_loss(self, weight: float, tau: float) -> None:
    """Sets weight and tau; the constructor calls it.

    Args:
      weight: epsilon, zero or more; 0 for no memory loss.
      tau: the masking from which a token counts as gone; positive.

    Raises:
      UserError: if a value is out of range, or there is a memory loss but the
        module's attention does not select.
    """
    name = f'models.{type(self).__name__}'
    if not is_number(weight) or not weight >= 0:
      raise UserError(
        f'{name}.memory_loss_weight = {weight!r}: expected a number, zero or '
        'more'
      )
    if not is_number(tau) or not tau > 0:
      raise UserError(
        f'{name}.memory_tau = {tau!r}: expected a positive number'
      )
    if weight:
      _check_selects(self.module.config.attention_fn, name)
    self._memory_loss_weight = weight
    self._memory_tau = tau
    self._scale_of_rows = None  # The whole batch's scale, for its parts.

  def loss_fn(
    self,
    params: Any,
    batch: Mapping[str, jax.Array],
    dropout_rng: jax.Array | None,
  ) -> tuple[jax.Array, Mapping[str, clu_metrics.Metric]]:
    """Returns (loss, metrics) as T5X does; no dropout without dropout_rng."""
    if not self._memory_loss_weight:
      return super().loss_fn(params, batch, dropout_rng)
    logits, layers_memory = self._logits_and_memory(params, batch, dropout_rng)
    cross_entropy, measured = super(
      MemoryLossMixin, model_copies.with_logits(self, logits)
    ).loss_fn(params, batch, dropout_rng)

    segment_ids = _segment_ids(batch)
    fractions = memory.fractions_of_rows(layers_memory, segment_ids)
    scale = self._scale_of_rows
    if scale is None:
      scale = self._row_scale(batch)
    loss = cross_entropy + scale * jnp.sum(fractions)
    minimised = ['loss']
    minimised += [name for name in measured if name.startswith('loss_per_')]
    tokens = jnp.sum(segment_ids != 0)
    return loss, {
      **measured,
      **{name: measured[name].replace(total=loss) for name in minimised},
      'memory/fraction_visible': clu_metrics.Average(
        total=jnp.sum(fractions), count=memory.count_rows(segment_ids)
      ),
      **{
        f'memory/visible_tokens_layer_{i}': clu_metrics.Average(
          total=jnp.sum(of_layer), count=tokens
        )
        for i, of_layer in enumerate(layers_memory)
      },
    }

  def for_parts_of(self, batch: Mapping[str, jax.Array]) -> Any:
    """Returns a model for parts of a batch; only the embedded engine calls it.

    R is a mean over the rows of the whole batch, weighted by all its tokens.
    """
    model = super().for_parts_of(batch)
    model._scale_of_rows = self._row_scale(batch)
    return model

  def _row_scale(self, batch) -> jax.Array:
    """Returns the factor of a row's fraction in the loss, f32[]."""
    normalizer, weights = losses.get_loss_normalizing_factor_and_weights(
      self._loss_normalizing_factor, batch
    )
    if weights is None:
      weights = jnp.ones(batch['decoder_target_tokens'].shape)
    scale = self._memory_loss_weight * jnp.sum(weights)
    if normalizer is not None:
      scale /= normalizer
    return scale / jnp.maximum(memory.count_rows(_segment_ids(batch)), 1)

  def _logits_and_memory(self, params, batch, dropout_rng):
    """Returns the logits, f32[B, N, V], and M of every layer, f32[L, B, N]."""
    model = model_copies.with_arguments(self, memory_tau=self._memory_tau)
    logits, changed = model._compute_logits(
      params, batch, dropout_rng, mutable=['intermediates']
    )
    sown = traverse_util.flatten_dict(changed['intermediates'])
    sown = {
      path: value for path, (value,) in sown.items() if path[-1] == 'memory'
    }
    memories = {_layer(path): value for path, value in sown.items()}
    if None in memories:
      return logits, memories[None]
    return logits, jnp.stack([memories[i] for i in range(len(memories))])


def _segment_ids(batch: Mapping[str, jax.Array]) -> jax.Array:
  """Returns the decoder's segment ids, or a mask of its non-padding targets."""
  segment_ids = batch.get('decoder_segment_ids')
  if segment_ids is None:
    return batch['decoder_target_tokens'] > 0
  return segment_ids


def _layer(path: tuple[str, ...]) -> int | None:
  """Returns the layer of a variable; None if it holds all scanned layers."""
  numbers = (
    int(name.removeprefix('layers_'))
    for name in path
    if name.startswith('layers_')
  )
  return next(numbers, None)


def _check_selects(attention_fn: Callable[..., Any], model: str):
  """Refuses an attention function that has no M."""
  if not capabilities.of(attention_fn).memory_tau:
    raise UserError(
      f'{model}.memory_loss_weight is on, but the attention '
      f'function ({capabilities.name(attention_fn)}) does not select: use '
      'ATTENTION = @attention.selective_attention '
      '(gin/attention/selective.gin) or memory_loss_weight = 0'
    )
