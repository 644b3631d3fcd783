"""The paper's memory loss and metrics of selection, for T5X models.

Source of the loss: arXiv 2410.02703, section 5.
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

  With live_keys_metrics, `attention/live_keys_layer_<l>` is the number of keys
  that a query of layer l reads, the mean over real tokens: the keys that it may
  see without those that attention has dropped as dead
  (`attention.selective_attention`, forget_below).

  Gin: gin/attention/memory_loss.gin.
  """

  def set_memory_loss(
    self, weight: float, tau: float, live_keys_metrics: bool = False
  ) -> None:
    """Sets the loss and the metrics; the constructor calls it.

    Args:
      weight: epsilon, zero or more; 0 for no memory loss.
      tau: the masking from which a token counts as gone; positive.
      live_keys_metrics: whether to measure how many keys a query reads.

    Raises:
      UserError: if a value is out of range, there is a memory loss but the
        module's attention does not select, or there should be live keys but it
        drops none.
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
    if live_keys_metrics:
      _check_counts(
        self.module.config, f'{name}.live_keys_metrics', live_keys_metrics
      )
    self._memory_loss_weight = weight
    self._memory_tau = tau
    self._live_keys = live_keys_metrics
    self._scale_of_rows = None  # The whole batch's scale, for its parts.

  def loss_fn(
    self,
    params: Any,
    batch: Mapping[str, jax.Array],
    dropout_rng: jax.Array | None,
  ) -> tuple[jax.Array, Mapping[str, clu_metrics.Metric]]:
    """Returns (loss, metrics) as T5X does; no dropout without dropout_rng."""
    if not self._memory_loss_weight and not self._live_keys:
      return super().loss_fn(params, batch, dropout_rng)
    logits, sown = self._logits_and_sown(params, batch, dropout_rng)
    loss, measured = super(
      MemoryLossMixin, model_copies.with_logits(self, logits)
    ).loss_fn(params, batch, dropout_rng)
    segment_ids = _segment_ids(batch)
    if self._live_keys:
      measured = measured | _layer_means(
        'attention/live_keys', sown['live_keys'], segment_ids
      )
    if not self._memory_loss_weight:
      return loss, measured
    return self._with_memory_loss(loss, measured, batch, sown['memory'])

  def _with_memory_loss(self, cross_entropy, measured, batch, layers_memory):
    """Returns (loss, metrics) with the memory loss added."""
    segment_ids = _segment_ids(batch)
    fractions = memory.fractions_of_rows(layers_memory, segment_ids)
    scale = self._scale_of_rows
    if scale is None:
      scale = self._row_scale(batch)
    loss = cross_entropy + scale * jnp.sum(fractions)
    minimised = ['loss']
    minimised += [name for name in measured if name.startswith('loss_per_')]
    return loss, {
      **measured,
      **{name: measured[name].replace(total=loss) for name in minimised},
      'memory/fraction_visible': clu_metrics.Average(
        total=jnp.sum(fractions), count=memory.count_rows(segment_ids)
      ),
      **_layer_means('memory/visible_tokens', layers_memory, segment_ids),
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

  def _logits_and_sown(self, params, batch, dropout_rng):
    """Returns the logits, f32[B, N, V], and what layers sow, f32[L, B, N]."""
    requests: dict[str, Any] = {}
    if self._memory_loss_weight:
      requests['memory_tau'] = self._memory_tau
    if self._live_keys:
      requests['live_keys'] = True
    model = model_copies.with_arguments(self, **requests)
    logits, changed = model._compute_logits(
      params, batch, dropout_rng, mutable=['intermediates']
    )
    sown = traverse_util.flatten_dict(changed['intermediates'])
    counts: dict[str, Any] = {}
    for path, (value,) in sown.items():
      counts.setdefault(path[-1], {})[_layer(path)] = value
    return logits, {name: _stacked(of) for name, of in counts.items()}


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


def _stacked(of_layers: Mapping[int | None, jax.Array]) -> jax.Array:
  """Returns the values of all layers, f32[L, B, N]."""
  if None in of_layers:
    return of_layers[None]
  return jnp.stack([of_layers[i] for i in range(len(of_layers))])


def _layer_means(name, values, segment_ids) -> dict[str, clu_metrics.Average]:
  """Returns the metric of each layer: its mean over real tokens.

  Args:
    name: the first part of the metrics' names.
    values: f32[L, B, N], 0 for padding.
    segment_ids: int[B, N], 0 for padding.
  """
  tokens = jnp.sum(segment_ids != 0)
  return {
    f'{name}_layer_{i}': clu_metrics.Average(
      total=jnp.sum(of_layer), count=tokens
    )
    for i, of_layer in enumerate(values)
  }


def _check_counts(config: Any, name: str, value: Any):
  """Refuses attention that does not count the keys it reads."""
  if not isinstance(value, bool):
    raise UserError(f'{name} = {value!r}: expected True or False')
  if config.pruning is not None:
    raise UserError(
      f'{name} = True: expected PRUNING = None, since pruned rows read the '
      'keys of their budget'
    )
  if not capabilities.of(config.attention_fn).return_live_keys:
    raise UserError(
      f'{name} = True, but the attention function '
      f'({capabilities.name(config.attention_fn)}) does not count live keys: '
      'use ATTENTION = @attention.selective_attention '
      '(gin/attention/selective.gin) or live_keys_metrics = False'
    )


def _check_selects(attention_fn: Callable[..., Any], model: str):
  """Refuses an attention function that has no M."""
  if not capabilities.of(attention_fn).memory_tau:
    raise UserError(
      f'{model}.memory_loss_weight is on, but the attention '
      f'function ({capabilities.name(attention_fn)}) does not select: use '
      'ATTENTION = @attention.selective_attention '
      '(gin/attention/selective.gin) or memory_loss_weight = 0'
    )
