"""T5X models: a Flax module with its vocabularies, loss, metrics and scores."""

import abc
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import seqio
from clu import metrics as clu_metrics
from flax import linen as nn

from t5x import losses, optimizers
from t5x import metrics as metrics_lib

PyTree = Any
Batch = Mapping[str, jax.Array]
LossNormalizingFactor = (
  float | int | str | losses.SpecialLossNormalizingFactor | None
)


class BaseModel(abc.ABC):
  """What training and evaluation need of a model."""

  FEATURE_CONVERTER_CLS: Callable[..., seqio.FeatureConverter]

  def __init__(self, optimizer_def: optimizers.OptimizerDef):
    self.optimizer_def = optimizer_def

  @abc.abstractmethod
  def loss_fn(
    self, params: PyTree, batch: Batch, dropout_rng: jax.Array | None
  ) -> tuple[jax.Array, metrics_lib.MetricsMap]:
    """Returns (scalar loss, metrics); no dropout where dropout_rng is None."""

  def eval_fn(
    self, params: PyTree, batch: Batch
  ) -> tuple[jax.Array, metrics_lib.MetricsMap]:
    """Returns (scalar loss, metrics) without dropout."""
    return self.loss_fn(params, batch, dropout_rng=None)

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
  """A model trained with cross entropy on `decoder_target_tokens`."""

  def __init__(
    self,
    module: nn.Module,
    input_vocabulary: seqio.Vocabulary,
    output_vocabulary: seqio.Vocabulary,
    optimizer_def: optimizers.OptimizerDef,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    loss_normalizing_factor: LossNormalizingFactor = None,
  ):
    self.module = module
    self._input_vocabulary = input_vocabulary
    self._output_vocabulary = output_vocabulary
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

  @abc.abstractmethod
  def _compute_logits(
    self, params: PyTree, batch: Batch, dropout_rng: jax.Array | None = None
  ) -> jax.Array:
    """Returns f32[B, N, V]."""

  def loss_fn(
    self, params: PyTree, batch: Batch, dropout_rng: jax.Array | None
  ) -> tuple[jax.Array, metrics_lib.MetricsMap]:
    """Returns (cross entropy with z-loss, metrics)."""
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
    metrics = self._compute_metrics(
      logits=logits,
      targets=batch['decoder_target_tokens'],
      mask=weights,
      loss=loss,
      z_loss=z_loss,
      segment_ids=_segment_ids(batch),
    )
    return loss, metrics

  def _compute_metrics(self, **kwargs) -> metrics_lib.MetricsMap:
    """Returns the metrics of a step; subclasses may add theirs."""
    return compute_base_metrics(**kwargs)


def _segment_ids(batch: Batch) -> Mapping[str, jax.Array]:
  """Returns the segment ids of each side, from tokens where not packed."""
  suffix = '_segment_ids'
  packed = {
    k.removesuffix(suffix): v for k, v in batch.items() if k.endswith(suffix)
  }
  return packed or {
    k: batch[k] != 0
    for k in ('encoder_input_tokens', 'decoder_target_tokens')
    if k in batch
  }


class DecoderOnlyModel(BaseTransformerModel):
  """A decoder-only model: `targets` alone, or `inputs` then `targets`.

  With both, the loss falls on the targets. Attention is causal everywhere,
  unless inputs_bidirectional_attention lets the inputs see each other (prefix
  LM).
  """

  FEATURE_CONVERTER_CLS = seqio.DecoderFeatureConverter

  def __init__(
    self,
    module: nn.Module,
    vocabulary: seqio.Vocabulary,
    optimizer_def: optimizers.OptimizerDef,
    inputs_bidirectional_attention: bool = False,
    feature_converter_cls: Callable[..., seqio.FeatureConverter] | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    loss_normalizing_factor: LossNormalizingFactor = None,
  ):
    if feature_converter_cls is not None:
      self.FEATURE_CONVERTER_CLS = feature_converter_cls
    self._inputs_bidirectional_attention = inputs_bidirectional_attention
    super().__init__(
      module,
      input_vocabulary=vocabulary,
      output_vocabulary=vocabulary,
      optimizer_def=optimizer_def,
      label_smoothing=label_smoothing,
      z_loss=z_loss,
      loss_normalizing_factor=loss_normalizing_factor,
    )

  def get_initial_variables(
    self,
    rng: jax.Array,
    input_shapes: Mapping[str, tuple[int, ...]],
    input_types: Mapping[str, jnp.dtype] | None = None,
  ) -> flax.core.FrozenDict:
    """Returns the module's variables for a batch of the given shapes."""
    tokens = jnp.ones(
      input_shapes['decoder_input_tokens'],
      (input_types or {}).get('decoder_input_tokens', jnp.float32),
    )
    return flax.core.freeze(
      self.module.init(rng, tokens, tokens, enable_dropout=False)
    )

  def _get_decoder_causal_attention(self, batch: Batch) -> jax.Array | None:
    """Returns i32[B, N], 1 where attention is bidirectional, or None."""
    if not self._inputs_bidirectional_attention:
      return None
    if 'decoder_causal_attention' not in batch:
      raise ValueError(
        '`inputs_bidirectional_attention` mode requires '
        '"decoder_causal_attention" feature in the batch'
      )
    return batch['decoder_causal_attention']

  def _compute_logits(
    self,
    params: PyTree,
    batch: Batch,
    dropout_rng: jax.Array | None = None,
    mutable: flax.core.scope.CollectionFilter = False,
    other_variables: PyTree | None = None,
  ) -> jax.Array:
    """Returns f32[B, N, V]; with `mutable` also the changed collections."""
    return self.module.apply(
      {'params': params, **(other_variables or {})},
      batch['decoder_input_tokens'],
      batch['decoder_target_tokens'],
      decoder_segment_ids=batch.get('decoder_segment_ids'),
      decoder_positions=batch.get('decoder_positions'),
      decoder_causal_attention=self._get_decoder_causal_attention(batch),
      rngs=None if dropout_rng is None else {'dropout': dropout_rng},
      decode=False,
      enable_dropout=dropout_rng is not None,
      mutable=mutable,
    )

  def score_batch(
    self, params: PyTree, batch: Batch, return_intermediates: bool = False
  ) -> jax.Array:
    """Returns the log-likelihood of each example's targets, f32[B].

    With return_intermediates also what the module sowed, as a nested dict with
    'decoder' holding target_tokens, loss_weights and token_scores f32[B, N].
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


def count_packed_examples(segment_ids: jax.Array) -> jax.Array:
  """Counts the segments in i32[B, N]; padding, at the end, has id 0."""
  starts = jnp.diff(segment_ids, axis=1, prepend=0) != 0
  return jnp.sum(starts & (segment_ids != 0))


def compute_base_metrics(
  logits: jax.Array,
  targets: jax.Array,
  mask: jax.Array | None,
  loss: jax.Array,
  z_loss: jax.Array | None = None,
  segment_ids: Mapping[str, jax.Array | None] | None = None,
) -> metrics_lib.MetricsMap:
  """Returns T5X's metrics of one step.

  `loss` is what is minimised, averaged over steps: with the normalising factor
  NUM_REAL_TARGET_TOKENS it is nats per token. The loss_per_* metrics divide
  it by tokens once more, as in T5X, and mean something without a factor only.

  Args:
    logits: f32[B, N, V].
    targets: i32[B, N].
    mask: f32[B, N], the loss weights, or None for all ones.
    loss: f32[], the loss of the step.
    z_loss: f32[], the z-loss in it.
    segment_ids: i32[B, N] for each side ('decoder', 'encoder'), 0 is padding.
  """
  examples, tokens = targets.shape[0], targets.size
  devices = jax.device_count()
  real_tokens = tokens if mask is None else jnp.sum(mask)
  rate = metrics_lib.TimeRate.from_model_output
  per_step = metrics_lib.AveragePerStep
  average = clu_metrics.Average
  metrics = {
    'accuracy': clu_metrics.Accuracy.from_model_output(
      logits=logits, labels=targets.astype(jnp.int32), mask=mask
    ),
    'loss': per_step(total=loss),
    'loss_per_nonpadding_target_token': average(total=loss, count=real_tokens),
    'loss_per_all_target_tokens': average(total=loss, count=tokens),
    'timing/seqs_per_second': rate(jnp.array(examples)),
    'timing/seqs_per_second_per_core': rate(jnp.array(examples / devices)),
    'timing/target_tokens_per_second': rate(jnp.array(tokens)),
    'timing/target_tokens_per_second_per_core': rate(
      jnp.array(tokens / devices)
    ),
    'timing/steps_per_second': metrics_lib.StepsPerTime.from_model_output(),
    'timing/seconds': metrics_lib.Time(),
    'timing/seqs': metrics_lib.Sum(jnp.array(examples)),
    'non_padding_fraction/loss_weights': average(
      total=real_tokens, count=tokens
    ),
  }
  if z_loss is not None:
    cross_entropy = loss - z_loss
    metrics |= {
      'z_loss': per_step(total=z_loss),
      'z_loss_per_all_target_tokens': average(total=z_loss, count=tokens),
      'cross_ent_loss': per_step(total=cross_entropy),
      'cross_ent_loss_per_all_target_tokens': average(
        total=cross_entropy, count=tokens
      ),
    }
  sides = {k: v for k, v in (segment_ids or {}).items() if v is not None}
  for side, ids in sides.items():
    metrics[f'effective_batch_size/{side}'] = per_step(
      total=count_packed_examples(ids.astype(jnp.int32))
    )
    metrics[f'non_padding_fraction/{side}'] = average(
      total=jnp.sum(ids != 0), count=ids.size
    )
  if sides:
    metrics['non_padding_fraction/overall'] = average(
      total=sum(jnp.sum(ids != 0) for ids in sides.values()),
      count=sum(ids.size for ids in sides.values()),
    )
  return metrics


def get_input_vocabulary(model: BaseTransformerModel) -> seqio.Vocabulary:
  """Returns the vocabulary of the inputs."""
  return model.input_vocabulary


def get_output_vocabulary(model: BaseTransformerModel) -> seqio.Vocabulary:
  """Returns the vocabulary of the targets."""
  return model.output_vocabulary
