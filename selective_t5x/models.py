"""T5X models of the suite."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import seqio
from flax import linen as nn

from selective_t5x.bindings import inherited
from selective_t5x.nn import (
  distillation,
  memory_loss,
  model_copies,
  settings,
  token_loss,
)
from t5x import decoding, models, optimizers


@inherited.of(models.EncoderDecoderModel)
class EncoderDecoder(
  memory_loss.MemoryLossMixin,
  token_loss.TokenLossMixin,
  models.EncoderDecoderModel,
):
  """T5X's encoder-decoder with the paper's memory loss for the decoder.

  Gin: gin/models/t5.gin, gin/attention/memory_loss.gin. Gin bindings of T5X's
  `models.EncoderDecoderModel`, as in T5X's guides, apply here too.
  """

  def __init__(
    self,
    module: nn.Module,
    input_vocabulary: seqio.Vocabulary,
    output_vocabulary: seqio.Vocabulary,
    optimizer_def: optimizers.OptimizerDef,
    decode_fn: Callable[..., Any] = decoding.beam_search,
    feature_converter_cls: Callable[..., seqio.FeatureConverter] | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    loss_normalizing_factor: float | int | str | None = None,
    default_decoder_params: models.DecoderParams | None = None,
    memory_loss_weight: float = 0.0,
    memory_tau: float = 1.0,
    network_fn: Callable[[nn.Module], nn.Module] | None = None,
    live_keys_metrics: bool = False,
  ):
    """Takes T5X's arguments, and those of the memory loss.

    Args, beside T5X's:
      module: `t5_network.Transformer`.
      network_fn: makes the network of `module`, e.g. `t5_network.from_t5x` of
        T5X's; None: `module` is the network.
      memory_loss_weight: epsilon, zero or more; 0 for no memory loss.
      memory_tau: tau, the masking from which a token counts as gone; positive.
      live_keys_metrics: whether to measure how many keys a query reads.

    Raises:
      UserError: as in `memory_loss.MemoryLossMixin.set_memory_loss`.
    """
    if network_fn is not None:
      module = network_fn(module)
    super().__init__(
      module,
      input_vocabulary,
      output_vocabulary,
      optimizer_def,
      decode_fn=decode_fn,
      feature_converter_cls=feature_converter_cls,
      label_smoothing=label_smoothing,
      z_loss=z_loss,
      loss_normalizing_factor=loss_normalizing_factor,
      default_decoder_params=default_decoder_params,
    )
    self.set_memory_loss(memory_loss_weight, memory_tau, live_keys_metrics)

  def predict_batch_with_aux(
    self,
    params: Any,
    batch: Mapping[str, jax.Array],
    rng: jax.Array | None = None,
    decoder_params: Mapping[str, Any] | None = None,
    return_all_decodes: bool | None = None,
    num_decodes: int | None = None,
    prompt_with_targets: bool | None = None,
  ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """Predicts outputs for a batch of inputs, like T5X.

    None stands for the value that gin binds to T5X's method, or without one for
    T5X's default.
    """
    options = {
      'decoder_params': decoder_params,
      'return_all_decodes': return_all_decodes,
      'num_decodes': num_decodes,
      'prompt_with_targets': prompt_with_targets,
    }
    base = models.EncoderDecoderModel.predict_batch_with_aux
    return inherited.method(base)(
      self,
      params,
      batch,
      rng,
      **{k: v for k, v in options.items() if v is not None},
    )


@inherited.of(models.DecoderOnlyModel)
class LanguageModel(
  memory_loss.MemoryLossMixin,
  token_loss.TokenLossMixin,
  distillation.DistillationMixin,
  models.DecoderOnlyModel,
):
  """T5X's decoder-only model with the paper's memory loss.

  Gin: gin/models/decoder.gin, gin/attention/memory_loss.gin. Gin bindings of
  T5X's `models.DecoderOnlyModel`, as in T5X's guides, apply here too.
  """

  def __init__(
    self,
    module: nn.Module,
    vocabulary: seqio.Vocabulary,
    optimizer_def: optimizers.OptimizerDef,
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
    network_fn: Callable[[nn.Module], nn.Module] | None = None,
    live_keys_metrics: bool = False,
    distil_gates: bool = False,
  ):
    """Takes T5X's arguments, and those of predictions, memory loss, scoring.

    Args, beside T5X's:
      module: `network.Decoder` or `t5_decoder_only.DecoderOnly`.
      inputs_bidirectional_attention: as in T5X: whether inputs see each other.
        Only for attention with a prefix, the baseline; selection is causal.
      default_decoder_params: as in T5X's EncoderDecoderModel: how many decodes
        predict_batch makes and returns by default.
      memory_loss_weight: epsilon, zero or more; 0 for no memory loss.
      memory_tau: tau, the masking from which a token counts as gone; positive.
      score_argmax: whether `score_batch` also returns is_argmax.
      network_fn: makes the network of `module`, e.g. `t5_decoder_only.from_t5x`
        of T5X's; None: `module` is the network.
      live_keys_metrics: whether to measure how many keys a query reads.
      distil_gates: whether the parameters of the attention's extension alone
        are trained, to keep the predictions of plain attention.

    Raises:
      UserError: if a value is out of range, there is a memory loss but the
        module's attention does not select, or inputs should see each other but
        it takes no prefix.
    """
    if network_fn is not None:
      module = network_fn(module)
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
    self.set_memory_loss(memory_loss_weight, memory_tau, live_keys_metrics)
    self.set_distillation(distil_gates)
    if inputs_bidirectional_attention:
      settings.check_takes_prefix(module.config.attention_fn)
    self._default_decoder_params = (
      default_decoder_params or models.DecoderParams()
    )
    self._score_argmax = score_argmax

  def loss_fn(
    self,
    params: Any,
    batch: Mapping[str, jax.Array],
    dropout_rng: jax.Array | None,
  ) -> tuple[jax.Array, Mapping[str, Any]]:
    """Returns (loss, metrics) as T5X does; no dropout without dropout_rng."""
    if self._distils:
      params = distillation.only_extensions(params)
    return super().loss_fn(params, batch, dropout_rng)

  def score_batch(
    self,
    params: Any,
    batch: Mapping[str, jax.Array],
    return_intermediates: bool = False,
  ) -> Any:
    """Returns the log-likelihood of each example's targets in nats, f32[B].

    With score_argmax it returns the pair of this and {'is_argmax': bool[B]}:
    whether every target token is the likeliest one, which greedy decoding would
    choose after the targets before it. With return_intermediates it returns
    T5X's pair.
    """
    if return_intermediates or not self._score_argmax:
      return super().score_batch(params, batch, return_intermediates)
    logits = self._compute_logits(params, batch)
    with_logits = model_copies.with_logits(self, logits)
    right = jnp.argmax(logits, axis=-1) == batch['decoder_target_tokens']
    ignored = batch['decoder_loss_weights'] == 0
    scores = super(LanguageModel, with_logits).score_batch(params, batch)
    return scores, {'is_argmax': jnp.all(right | ignored, axis=-1)}

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
    """Predicts the continuation of the inputs, like T5X.

    None stands for the value that gin binds to T5X's method. Without one,
    return_all_decodes and num_decodes are those of default_decoder_params.
    """
    base = models.DecoderOnlyModel.predict_batch_with_aux
    bound = inherited.bound(base)
    default = self._default_decoder_params
    if return_all_decodes is None and 'return_all_decodes' not in bound:
      return_all_decodes = default.return_all_decodes
    if num_decodes is None and 'num_decodes' not in bound:
      num_decodes = default.num_decodes
    if decoder_params is None and 'decoder_params' not in bound:
      decoder_params = {}
    if decoder_params is not None:
      decoder_params = dict(decoder_params)  # T5X writes into it.
    options = {
      'return_all_decodes': return_all_decodes,
      'num_decodes': num_decodes,
      'decoder_params': decoder_params,
    }
    return inherited.method(base)(
      self,
      params,
      batch,
      rng,
      **{k: v for k, v in options.items() if v is not None},
    )
