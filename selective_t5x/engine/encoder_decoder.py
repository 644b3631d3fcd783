"""T5X's encoder-decoder model. Shapes as in base_models.py."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import seqio
from flax import linen as nn

from t5x import base_models, decoding, optimizers
from t5x.base_models import Batch, PyTree

# Features that only packed batches have.
_PACKING_FEATURES = (
  'encoder_positions',
  'decoder_positions',
  'encoder_segment_ids',
  'decoder_segment_ids',
)


@dataclasses.dataclass(frozen=True)
class DecoderParams:
  """Defaults of predictions.

  Attributes:
    return_all_decodes: whether to return all decodes, or the best.
    num_decodes: K, beams or samples of each row.
  """

  return_all_decodes: bool = False
  num_decodes: int = 1


class EncoderDecoderModel(base_models.BaseTransformerModel):
  """An encoder-decoder: `inputs` are read, `targets` are written.

  The module has the methods `encode`, `decode` and `__call__` of T5X's T5
  network.
  """

  FEATURE_CONVERTER_CLS = seqio.EncDecFeatureConverter

  def __init__(
    self,
    module: nn.Module,
    input_vocabulary: seqio.Vocabulary,
    output_vocabulary: seqio.Vocabulary,
    optimizer_def: optimizers.OptimizerDef,
    decode_fn: base_models.DecodeFnCallable = decoding.beam_search,
    feature_converter_cls: Callable[..., seqio.FeatureConverter] | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    loss_normalizing_factor: base_models.LossNormalizingFactor = None,
    default_decoder_params: DecoderParams | None = None,
  ):
    if feature_converter_cls is not None:
      self.FEATURE_CONVERTER_CLS = feature_converter_cls
    self._default_decoder_params = default_decoder_params or DecoderParams()
    super().__init__(
      module,
      input_vocabulary=input_vocabulary,
      output_vocabulary=output_vocabulary,
      optimizer_def=optimizer_def,
      decode_fn=decode_fn,
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

    def ones(feature, default_type):
      dtype = (input_types or {}).get(feature, default_type)
      return jnp.ones(input_shapes[feature], dtype)

    decoder_tokens = ones('decoder_input_tokens', jnp.float32)
    packing = {
      feature: ones(feature, jnp.int32) if feature in input_shapes else None
      for feature in _PACKING_FEATURES
    }
    return flax.core.freeze(
      self.module.init(
        rng,
        ones('encoder_input_tokens', jnp.float32),
        decoder_tokens,
        decoder_tokens,
        **packing,
        decode=False,
        enable_dropout=False,
      )
    )

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
      batch['encoder_input_tokens'],
      batch['decoder_input_tokens'],
      batch['decoder_target_tokens'],
      **{feature: batch.get(feature) for feature in _PACKING_FEATURES},
      decode=False,
      enable_dropout=dropout_rng is not None,
      rngs=None if dropout_rng is None else {'dropout': dropout_rng},
      mutable=mutable,
    )

  def _compute_logits_from_slice(
    self,
    decoding_state: decoding.DecodingState,
    params: PyTree,
    encoded_inputs: jax.Array,
    raw_inputs: jax.Array,
    max_decode_length: int,
  ) -> tuple[jax.Array, decoding.Cache]:
    """Reads one token of each row: (next logits f32[B * K, V], new cache).

    Args:
      decoding_state: the current tokens and the cache.
      params: the module's parameters.
      encoded_inputs: f32[B * K, N, M], the encoder's output.
      raw_inputs: i32[B * K, N], the inputs, where 0 is padding.
      max_decode_length: length of the cache.
    """
    tokens = decoding_state.cur_token
    logits, changed = self.module.apply(
      {'params': params, 'cache': decoding_state.cache},
      encoded_inputs,
      raw_inputs,
      tokens,
      tokens,
      enable_dropout=False,
      decode=True,
      max_decode_length=max_decode_length,
      mutable=['cache'],
      method=self.module.decode,
    )
    return jnp.squeeze(logits, axis=1), changed['cache']

  def _compute_kv_cache(
    self,
    params: PyTree,
    encoded_inputs: jax.Array,
    encoder_input_tokens: jax.Array,
    decoder_input_tokens: jax.Array,
    prefill_decoder_prompt: bool = False,
  ) -> tuple[decoding.Cache, jax.Array | None]:
    """Makes a KV cache, and prefills it with the prompts if requested.

    Args:
      params: the module's parameters.
      encoded_inputs: f32[B, N, M], the encoder's output.
      encoder_input_tokens: i32[B, N], the inputs, where 0 is padding.
      decoder_input_tokens: i32[B, N], the prompts: the start token, tokens,
        then zeros.
      prefill_decoder_prompt: whether to prefill.

    Returns:
      (the cache, lengths of the prompts in it i32[B] or None).
    """
    fake_targets = jnp.ones_like(decoder_input_tokens)
    _, variables = self.module.apply(
      {'params': params},
      encoder_input_tokens=jnp.ones_like(encoder_input_tokens),
      decoder_input_tokens=fake_targets,
      decoder_target_tokens=fake_targets,
      mutable=['cache'],
      decode=True,
      enable_dropout=False,
    )
    if not prefill_decoder_prompt:
      return variables['cache'], None
    lengths = jnp.sum(decoder_input_tokens != 0, axis=1)
    _, variables = self.module.apply(
      {'params': params, 'cache': variables['cache']},
      encoded=encoded_inputs,
      encoder_input_tokens=encoder_input_tokens,
      decoder_input_tokens=decoder_input_tokens,
      decoder_target_tokens=fake_targets,
      mutable=['cache'],
      enable_dropout=False,
      prefill=True,
      prefill_lengths=lengths,
      method=self.module.decode,
    )
    cache = flax.core.unfreeze(variables['cache'])
    # Learned positions count calls, and prefilling is one call.
    if 'position_embedder' in cache.get('decoder', {}):
      embedder = cache['decoder']['position_embedder']
      embedder['position_embedder_index'] = lengths
    return cache, lengths

  def predict_batch_with_aux(
    self,
    params: PyTree,
    batch: Batch,
    rng: jax.Array | None = None,
    decoder_params: Mapping[str, Any] | None = None,
    return_all_decodes: bool | None = None,
    num_decodes: int | None = None,
    prompt_with_targets: bool = False,
  ) -> base_models.Predictions:
    """Generates outputs for a batch of inputs.

    Args:
      params: the module's parameters.
      batch: encoder_input_tokens i32[B, N]; decoder_input_tokens i32[B, N],
        as long as the outputs.
      rng: the key of sampling.
      decoder_params: more arguments of the decoding function, e.g. `alpha` of
        beam search; arrays among them may be traced.
      return_all_decodes: whether to return all K decodes or the best; None:
        default_decoder_params.
      num_decodes: K; None: default_decoder_params.
      prompt_with_targets: whether outputs must start with the given
        decoder_input_tokens, end tokens left out.

    Returns:
      (tokens i32[B, N] or i32[B, K, N], {'scores': f32[B] or f32[B, K]}), the
      best decode last.

    Raises:
      ValueError: rng and decoder_params both give a key.
    """
    if return_all_decodes is None:
      return_all_decodes = self._default_decoder_params.return_all_decodes
    if num_decodes is None:
      num_decodes = self._default_decoder_params.num_decodes
    inputs = batch['encoder_input_tokens']
    targets = batch['decoder_input_tokens']
    prompts = jnp.zeros_like(targets)
    if prompt_with_targets:
      prompts = targets * (targets != self.output_vocabulary.eos_id)
    encoded = self.module.apply(
      {'params': params},
      inputs,
      enable_dropout=False,
      method=self.module.encode,
    )
    cache, initial_index = self._compute_kv_cache(
      params,
      encoded_inputs=encoded,
      encoder_input_tokens=inputs,
      decoder_input_tokens=prompts,
      # Otherwise prompts are read step by step.
      prefill_decoder_prompt=base_models.takes_argument(
        self.decode_fn, 'initial_index'
      )
      and base_models.takes_argument(self.module.decode, 'prefill'),
    )
    return self._decode(
      inputs=prompts,
      cache=cache,
      tokens_to_logits=functools.partial(
        self._compute_logits_from_slice,
        params=params,
        encoded_inputs=decoding.flat_batch_beam_expand(encoded, num_decodes),
        raw_inputs=decoding.flat_batch_beam_expand(inputs, num_decodes),
        max_decode_length=targets.shape[1],
      ),
      initial_index=initial_index,
      num_decodes=num_decodes,
      return_all_decodes=return_all_decodes,
      rng=rng,
      decoder_params=decoder_params,
    )
