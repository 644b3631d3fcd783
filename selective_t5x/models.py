"""T5X models of the suite."""

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import seqio
from clu import metrics as clu_metrics
from flax import linen as nn
from flax import traverse_util

from selective_t5x import network
from selective_t5x.attention import memory
from selective_t5x.errors import UserError
from t5x import decoding, losses, models


class LanguageModel(models.DecoderOnlyModel):
  """T5X's decoder-only model with the paper's memory loss.

  The memory loss asks selection to leave few tokens visible, so that the others
  can be pruned. Source: arXiv 2410.02703, section 5. Per token

    loss = cross_entropy + memory_loss_weight * R

  with R from `attention.memory.fraction_visible`. T5X sums over tokens and
  divides by loss_normalizing_factor, so to the batch's loss this adds
  memory_loss_weight * R * (sum of loss weights) / loss_normalizing_factor.

  Metrics: `loss` and `loss_per_*` are of all that is minimised,
  `cross_ent_loss` leaves the memory loss out, `memory/fraction_visible` is R.
  With weight 0 the model is T5X's and nothing of this is computed.

  Gin: gin/models/decoder.gin, gin/attention/memory_loss.gin.
  """

  def __init__(
    self,
    module: nn.Module,
    vocabulary: seqio.Vocabulary,
    optimizer_def: Any,
    decode_fn: Callable[..., Any] = decoding.temperature_sample,
    inputs_bidirectional_attention: bool = False,
    feature_converter_cls: Callable[..., seqio.FeatureConverter] | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    loss_normalizing_factor: float | int | str | None = None,
    default_decoder_params: models.DecoderParams | None = None,
    memory_loss_weight: float = 0.0,
    memory_tau: float = 1.0,
    score_argmax: bool = False,
  ):
    """Takes T5X's arguments, and those of predictions, memory loss, scoring.

    Args:
      module: `network.Decoder`.
      vocabulary: of inputs and targets.
      optimizer_def: T5X's optimizer definition.
      decode_fn: T5X's: decoding.temperature_sample, beam_search or one's own.
      inputs_bidirectional_attention: T5X's: inputs see each other. For
        attention that takes a prefix, the baseline's; selection is causal.
      feature_converter_cls: None for seqio.DecoderFeatureConverter.
      label_smoothing: T5X's.
      z_loss: T5X's.
      loss_normalizing_factor: T5X's.
      default_decoder_params: as of T5X's EncoderDecoderModel: how many decodes
        predict_batch makes and returns where the caller does not say.
      memory_loss_weight: epsilon, zero or more; 0 for no memory loss.
      memory_tau: tau, positive: masked this much, a token counts as gone.
      score_argmax: whether `score_batch` says more than T5X's: see there.

    Raises:
      UserError: if a value is out of range, there is a memory loss but the
        module's attention does not select, or inputs are to see each other but
        it takes no prefix.
    """
    super().__init__(
      module,
      vocabulary,
      optimizer_def,
      decode_fn=decode_fn,
      inputs_bidirectional_attention=inputs_bidirectional_attention,
      feature_converter_cls=feature_converter_cls,
      label_smoothing=label_smoothing,
      z_loss=z_loss,
      loss_normalizing_factor=loss_normalizing_factor,
    )
    if not memory_loss_weight >= 0:
      raise UserError(
        f'models.LanguageModel.memory_loss_weight = {memory_loss_weight!r}: '
        'expected a number, zero or more'
      )
    if not memory_tau > 0:
      raise UserError(
        f'models.LanguageModel.memory_tau = {memory_tau!r}: expected a '
        'positive number'
      )
    if memory_loss_weight:
      _check_selects(module.config.attention_fn)
    if inputs_bidirectional_attention:
      network.check_takes_prefix(module.config.attention_fn)
    self._default_decoder_params = (
      default_decoder_params or models.DecoderParams()
    )
    self._memory_loss_weight = memory_loss_weight
    self._memory_tau = memory_tau
    self._score_argmax = score_argmax

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
    # T5X's own loss and metrics, of logits that are there already.
    given_logits = copy.copy(self)
    given_logits._memory_loss_weight = 0.0
    given_logits._compute_logits = lambda *_: logits
    cross_entropy, measured = given_logits.loss_fn(params, batch, dropout_rng)

    segment_ids = batch.get('decoder_segment_ids')
    if segment_ids is None:
      segment_ids = batch['decoder_target_tokens'] > 0
    visible = memory.fraction_visible(layers_memory, segment_ids)
    normalizer, weights = losses.get_loss_normalizing_factor_and_weights(
      self._loss_normalizing_factor, batch
    )
    if weights is None:
      weights = jnp.ones(segment_ids.shape)
    added = self._memory_loss_weight * visible * jnp.sum(weights)
    if normalizer is not None:
      added /= normalizer
    loss = cross_entropy + added
    minimised = ['loss']
    minimised += [name for name in measured if name.startswith('loss_per_')]
    return loss, {
      **measured,
      **{name: measured[name].replace(total=loss) for name in minimised},
      'memory/fraction_visible': clu_metrics.Average(total=visible, count=1),
    }

  def score_batch(
    self,
    params: Any,
    batch: Mapping[str, jax.Array],
    return_intermediates: bool = False,
  ) -> Any:
    """Returns the log-likelihood of each example's targets in nats, f32[B].

    With score_argmax a pair of it and {'is_argmax': bool[B]}: whether every
    target token is the likeliest one, which is what greedy decoding, given the
    targets before it, would have chosen. With return_intermediates T5X's pair.
    """
    if return_intermediates or not self._score_argmax:
      return super().score_batch(params, batch, return_intermediates)
    logits = self._compute_logits(params, batch)
    given_logits = copy.copy(self)
    given_logits._score_argmax = False
    given_logits._compute_logits = lambda *_, **__: logits
    right = jnp.argmax(logits, axis=-1) == batch['decoder_target_tokens']
    ignored = batch['decoder_loss_weights'] == 0
    return given_logits.score_batch(params, batch), {
      'is_argmax': jnp.all(right | ignored, axis=-1)
    }

  def predict_batch_with_aux(
    self,
    params: Any,
    batch: Mapping[str, jax.Array],
    rng: jax.Array | None = None,
    *,
    return_all_decodes: bool | None = None,
    num_decodes: int | None = None,
    decoder_params: Mapping[str, Any] | None = None,
  ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """Writes what follows the inputs, as T5X does.

    return_all_decodes and num_decodes are default_decoder_params' where they
    are None.
    """
    default = self._default_decoder_params
    if return_all_decodes is None:
      return_all_decodes = default.return_all_decodes
    if num_decodes is None:
      num_decodes = default.num_decodes
    return super().predict_batch_with_aux(
      params,
      batch,
      rng,
      return_all_decodes=return_all_decodes,
      num_decodes=num_decodes,
      # T5X writes into it.
      decoder_params=dict(decoder_params or {}),
    )

  def _logits_and_memory(self, params, batch, dropout_rng):
    """Returns f32[B, N, V] and the M of every layer, f32[L, B, N]."""
    logits, changed = self.module.apply(
      {'params': params},
      batch['decoder_input_tokens'],
      batch['decoder_target_tokens'],
      decoder_segment_ids=batch.get('decoder_segment_ids'),
      decoder_positions=batch.get('decoder_positions'),
      decoder_causal_attention=self._get_decoder_causal_attention(batch),
      rngs=None if dropout_rng is None else {'dropout': dropout_rng},
      enable_dropout=dropout_rng is not None,
      memory_tau=self._memory_tau,
      mutable=['intermediates'],
    )
    sown = traverse_util.flatten_dict(changed['intermediates'])
    return logits, jnp.stack(
      [value for path, (value,) in sown.items() if path[-1] == 'memory']
    )


def _check_selects(attention_fn: Callable[..., Any]):
  """Refuses an attention function that has no memory to speak of."""
  if 'memory_tau' not in inspect.signature(attention_fn).parameters:
    raise UserError(
      'models.LanguageModel.memory_loss_weight is on, but the attention '
      f'function ({attention_fn.__name__}) does not select: use ATTENTION = '
      '@attention.selective_attention (gin/attention/selective.gin) or '
      'memory_loss_weight = 0'
    )
