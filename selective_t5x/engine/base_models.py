"""Base classes of the models: vocabularies, loss, metrics, scores, decoding.

Shapes: B batch, N length, K decodes of each row, V vocabulary.
"""

import abc
import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax
import jax
import jax.numpy as jnp
import seqio
from flax import linen as nn

from t5x import decoding, losses, model_metrics, optimizers
from t5x import metrics as metrics_lib

PyTree = Any
Batch = Mapping[str, jax.Array]
Predictions = tuple[jax.Array, Mapping[str, Any]]
LossNormalizingFactor = (
  float | int | str | losses.SpecialLossNormalizingFactor | None
)


class TokensIdsToLogitsCallable(Protocol):
  """One decoding step, which a model passes to a decoding function."""

  def __call__(
    self, decoding_state: decoding.DecodingState
  ) -> tuple[jax.Array, decoding.Cache]:
    """Returns (logits of the next token f32[B * K, V], the new cache)."""
    ...


class DecodeFnCallable(Protocol):
  """A decoding function: beam_search, temperature_sample or a user's own."""

  def __call__(
    self,
    *,
    inputs: jax.Array,
    cache: decoding.Cache,
    tokens_to_logits: TokensIdsToLogitsCallable,
    eos_id: int,
    num_decodes: int,
    decode_rng: jax.Array | None,
    cache_offset: int,
    **kwargs,
  ) -> tuple[jax.Array, jax.Array]:
    """Continues prompts; the arguments are decoding.temperature_sample's.

    A function with an argument initial_index, i32[B], receives a KV cache that
    contains the prompts, and decodes after them.

    Returns:
      (tokens i32[B, K, N], scores f32[B, K]), the best last.
    """
    ...


class BaseModel(abc.ABC):
  """Interface of a model for training, evaluation and inference."""

  FEATURE_CONVERTER_CLS: Callable[..., seqio.FeatureConverter]

  def __init__(self, optimizer_def: optimizers.OptimizerDef):
    self.optimizer_def = optimizer_def

  @abc.abstractmethod
  def loss_fn(
    self, params: PyTree, batch: Batch, dropout_rng: jax.Array | None
  ) -> tuple[jax.Array, metrics_lib.MetricsMap]:
    """Returns (scalar loss, metrics); dropout_rng None: no dropout."""

  def for_parts_of(self, batch: Batch) -> 'BaseModel':
    """Returns the model for parts of a batch, whose gradients are summed.

    The losses of the parts, computed with that model, must add up to this
    model's loss of `batch`. For a loss that is a sum over rows, this model has
    the property. A loss that is divided by a count of the batch must be divided
    by the whole batch's count.

    Args:
      batch: the whole batch, arrays [B, ...].
    """
    del batch
    return self

  def eval_fn(
    self, params: PyTree, batch: Batch
  ) -> tuple[jax.Array, metrics_lib.MetricsMap]:
    """Returns (scalar loss, metrics) without dropout."""
    return self.loss_fn(params=params, batch=batch, dropout_rng=None)

  def predict_batch(
    self, params: PyTree, batch: Batch, rng: jax.Array | None = None
  ) -> jax.Array:
    """Returns only the predictions; rng is the key of sampling."""
    return self.predict_batch_with_aux(params=params, batch=batch, rng=rng)[0]

  @abc.abstractmethod
  def predict_batch_with_aux(
    self, params: PyTree, batch: Batch, rng: jax.Array | None = None
  ) -> Predictions:
    """Returns (predictions, {name: auxiliary values})."""

  @abc.abstractmethod
  def score_batch(
    self, params: PyTree, batch: Batch, return_intermediates: bool = False
  ) -> jax.Array:
    """Returns the log-likelihood of each example's targets, f32[B]."""

  @abc.abstractmethod
  def get_initial_variables(
    self,
    rng: jax.Array,
    input_shapes: Mapping[str, tuple[int, ...]],
    input_types: Mapping[str, jnp.dtype] | None = None,
  ) -> flax.core.FrozenDict:
    """Returns the module's variables for a batch of the given shapes."""


class BaseTransformerModel(BaseModel):
  """A model trained with cross-entropy on `decoder_target_tokens`."""

  def __init__(
    self,
    module: nn.Module,
    input_vocabulary: seqio.Vocabulary,
    output_vocabulary: seqio.Vocabulary,
    optimizer_def: optimizers.OptimizerDef,
    decode_fn: DecodeFnCallable | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    loss_normalizing_factor: LossNormalizingFactor = None,
  ):
    self.module = module
    self._input_vocabulary = input_vocabulary
    self._output_vocabulary = output_vocabulary
    self._decode_fn = decode_fn
    self._label_smoothing = label_smoothing
    self._z_loss = z_loss
    self._loss_normalizing_factor = loss_normalizing_factor
    super().__init__(optimizer_def)

  @property
  def input_vocabulary(self) -> seqio.Vocabulary:
    """The vocabulary of the inputs."""
    return self._input_vocabulary

  @property
  def output_vocabulary(self) -> seqio.Vocabulary:
    """The vocabulary of the targets."""
    return self._output_vocabulary

  @property
  def decode_fn(self) -> DecodeFnCallable | None:
    """The decoding function."""
    return self._decode_fn

  @abc.abstractmethod
  def _compute_logits(
    self, params: PyTree, batch: Batch, dropout_rng: jax.Array | None = None
  ) -> jax.Array:
    """Returns f32[B, N, V]; score_batch also passes `mutable`."""

  def for_parts_of(self, batch: Batch) -> 'BaseTransformerModel':
    """Returns a copy that divides by the whole batch's normalising factor."""
    model = copy.copy(self)
    model._loss_normalizing_factor = losses.factor_for_parts_of(
      self._loss_normalizing_factor, batch
    )
    return model

  def loss_fn(
    self, params: PyTree, batch: Batch, dropout_rng: jax.Array | None
  ) -> tuple[jax.Array, metrics_lib.MetricsMap]:
    """Returns (cross-entropy with z-loss, metrics)."""
    logits = self._compute_logits(params, batch, dropout_rng)
    factor, weights = losses.get_loss_normalizing_factor_and_weights(
      self._loss_normalizing_factor, batch
    )
    loss, z_loss, _ = losses.compute_weighted_cross_entropy(
      logits,
      targets=batch['decoder_target_tokens'],
      weights=weights,
      label_smoothing=self._label_smoothing,
      z_loss=self._z_loss,
      loss_normalizing_factor=factor,
    )
    targets = batch['decoder_target_tokens']
    metrics = self._compute_metrics(
      logits=logits,
      targets=targets,
      mask=weights,
      loss=loss,
      z_loss=z_loss,
      segment_ids=_segment_ids(batch),
    )
    tokens = losses.token_weights(batch)
    if weights is not None:
      metrics = model_metrics.count_tokens(metrics, tokens)
    return loss, {
      **metrics,
      model_metrics.TOKEN_LOSS: model_metrics.token_loss(
        logits, targets, tokens
      ),
    }

  def _compute_metrics(
    self,
    logits: jax.Array,
    targets: jax.Array,
    mask: jax.Array | None,
    loss: jax.Array,
    z_loss: jax.Array | None = None,
    segment_ids: Mapping[str, jax.Array | None] | None = None,
  ) -> metrics_lib.MetricsMap:
    """Returns the metrics of a step; subclasses may add more.

    For the arguments see model_metrics.compute_base_metrics.
    """
    return model_metrics.compute_base_metrics(
      logits=logits,
      targets=targets,
      mask=mask,
      loss=loss,
      z_loss=z_loss,
      segment_ids=segment_ids,
    )

  def score_batch(
    self, params: PyTree, batch: Batch, return_intermediates: bool = False
  ) -> jax.Array:
    """Returns the log-likelihood of each example's targets, f32[B].

    With return_intermediates it also returns the module's sown values, a nested
    dict whose 'decoder' has target_tokens, loss_weights and token_scores
    f32[B, N].
    """
    targets, weights = (
      batch['decoder_target_tokens'],
      batch['decoder_loss_weights'],
    )
    if return_intermediates:
      logits, changed = self._compute_logits(
        params, batch, mutable=['intermediates']
      )
    else:
      logits = self._compute_logits(params, batch)
    log_probs = jax.nn.log_softmax(logits)
    token_scores = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)
    token_scores = token_scores[..., 0] * weights
    scores = token_scores.sum(-1)
    if not return_intermediates:
      return scores
    intermediates = flax.core.unfreeze(changed.get('intermediates', {}))
    intermediates.setdefault('decoder', {}).update(
      target_tokens=(targets,),
      loss_weights=(weights,),
      token_scores=(token_scores,),
    )
    return scores, intermediates

  def _decode(
    self,
    *,
    inputs: jax.Array,
    cache: decoding.Cache,
    tokens_to_logits: TokensIdsToLogitsCallable,
    initial_index: jax.Array | None,
    num_decodes: int,
    return_all_decodes: bool,
    rng: jax.Array | None,
    decoder_params: Mapping[str, Any] | None,
  ) -> Predictions:
    """Calls the decoding function; see also predict_batch_with_aux.

    Args:
      inputs: i32[B, N], the prompts: the start token, then tokens, then zeros.
      cache: of B rows.
      tokens_to_logits: one step of decoding.
      initial_index: i32[B], lengths of the prompts in the cache, or None.
      num_decodes: K.
      return_all_decodes: whether to return all K decodes or the best.
      rng: the key of sampling.
      decoder_params: more arguments of the decoding function.

    Returns:
      (tokens i32[B, N] or i32[B, K, N], {'scores': f32[B] or f32[B, K]}).

    Raises:
      ValueError: rng and decoder_params both give a key.
    """
    decoder_params = dict(decoder_params or {})
    if rng is not None:
      if (key := decoder_params.get('decode_rng')) is not None:
        raise ValueError(
          f'Got RNG both from the `rng` argument ({rng}) and '
          f"`decoder_params['decode_rng']` ({key}). Please specify one or "
          'the other.'
        )
      decoder_params['decode_rng'] = rng
    if initial_index is not None:
      decoder_params['initial_index'] = initial_index
    decoder_params.setdefault('eos_id', self.output_vocabulary.eos_id or 1)
    tokens, scores = self.decode_fn(
      inputs=inputs,
      cache=cache,
      tokens_to_logits=tokens_to_logits,
      num_decodes=num_decodes,
      cache_offset=1 if getattr(self.module, 'scan_layers', False) else 0,
      **decoder_params,
    )
    if not return_all_decodes:
      tokens, scores = tokens[:, -1], scores[:, -1]
    return tokens, {'scores': scores}


def takes_argument(fn: Callable[..., Any], name: str) -> bool:
  """Tells whether a function has an argument with this name."""
  return name in inspect.signature(fn).parameters


def _segment_ids(batch: Batch) -> Mapping[str, jax.Array]:
  """Returns the segment ids of each side, from the tokens if not packed."""
  suffix = '_segment_ids'
  packed = {
    k.removesuffix(suffix): v for k, v in batch.items() if k.endswith(suffix)
  }
  return packed or {
    k: batch[k] != 0
    for k in ('encoder_input_tokens', 'decoder_target_tokens')
    if k in batch
  }
