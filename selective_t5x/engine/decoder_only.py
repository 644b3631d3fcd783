"""T5X's decoder-only model. Shapes as in base_models.py."""

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


class DecoderOnlyModel(base_models.BaseTransformerModel):
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
    decode_fn: base_models.DecodeFnCallable = decoding.temperature_sample,
    inputs_bidirectional_attention: bool = False,
    feature_converter_cls: Callable[..., seqio.FeatureConverter] | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    loss_normalizing_factor: base_models.LossNormalizingFactor = None,
  ):
    if feature_converter_cls is not None:
      self.FEATURE_CONVERTER_CLS = feature_converter_cls
    self._inputs_bidirectional_attention = inputs_bidirectional_attention
    super().__init__(
      module,
      input_vocabulary=vocabulary,
      output_vocabulary=vocabulary,
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

  def _compute_logits_from_slice(
    self,
    decoding_state: decoding.DecodingState,
    params: PyTree,
    max_decode_length: int,
  ) -> tuple[jax.Array, decoding.Cache]:
    """Reads one token of each row: (next logits f32[B * K, V], new cache)."""
    tokens = decoding_state.cur_token
    logits, changed = self.module.apply(
      {'params': params, 'cache': decoding_state.cache},
      tokens,
      tokens,
      enable_dropout=False,
      decode=True,
      max_decode_length=max_decode_length,
      mutable=['cache'],
    )
    return jnp.squeeze(logits, axis=1), changed['cache']

  def _compute_kv_cache(
    self, params: PyTree, inputs: jax.Array, causal_attention_mask: jax.Array
  ) -> tuple[decoding.Cache, jax.Array]:
    """Makes a KV cache and prefills it with the prompts.

    Args:
      params: the module's parameters.
      inputs: i32[B, N], the prompts: the start token, tokens, then zeros.
      causal_attention_mask: i32[B, N], 1 for the start token and the prompt.

    Returns:
      (the cache, lengths of the prompts i32[B]). The last token of a prompt is
      read again in the first step of decoding, which needs its logits.
    """
    lengths = jnp.sum(inputs[:, 1:] != 0, axis=-1)
    ones = jnp.ones_like(inputs)
    _, variables = self.module.apply(
      {'params': params},
      ones,
      ones,
      enable_dropout=False,
      decode=True,
      mutable=['cache'],
    )
    _, variables = self.module.apply(
      {'params': params, 'cache': variables['cache']},
      decoder_input_tokens=inputs,
      # A module takes targets of 0 for padding; the start token is not padding.
      decoder_target_tokens=causal_attention_mask,
      decoder_causal_attention=self._get_decoder_causal_attention(
        {'decoder_causal_attention': causal_attention_mask}
      ),
      mutable=['cache'],
      enable_dropout=False,
      prefill=True,
      prefill_lengths=lengths,
    )
    return variables['cache'], lengths

  def predict_batch_with_aux(
    self,
    params: PyTree,
    batch: Batch,
    rng: jax.Array | None = None,
    *,
    return_all_decodes: bool = False,
    num_decodes: int = 1,
    decoder_params: Mapping[str, Any] | None = None,
  ) -> base_models.Predictions:
    """Generates the continuation of a batch's inputs.

    decoder_causal_attention marks the inputs, as made by
    seqio.DecoderFeatureConverter: the start token and the inputs. With inputs
    9 4 1 and targets 3 1,

      decoder_input_tokens      0 9 4 1 3 0
      decoder_causal_attention  1 1 1 1 0 0
      prompt                    0 9 4 1 0 0
      result                    a b c 0 0 0

    Args:
      params: the module's parameters.
      batch: decoder_input_tokens and decoder_causal_attention, i32[B, N], with
        N the length of inputs and outputs together.
      rng: the key of sampling.
      return_all_decodes: whether to return all K decodes or the best.
      num_decodes: K.
      decoder_params: more arguments of the decoding function, e.g.
        `temperature` of sampling; arrays among them may be traced.

    Returns:
      (tokens i32[B, N] or i32[B, K, N], {'scores': f32[B] or f32[B, K]}), the
      best decode last.

    Raises:
      ValueError: the batch does not mark its inputs, or rng and decoder_params
        both give a key.
    """
    if 'decoder_causal_attention' not in batch:
      raise ValueError(
        'Batch does not have the right format for text generation: probably '
        'because `task_feature_lengths` passed to the feature converter does '
        'not have both `inputs` and `targets`.'
      )
    mask = batch['decoder_causal_attention']
    inputs = batch['decoder_input_tokens'] * mask
    cache, lengths = self._compute_kv_cache(params, inputs, mask)
    tokens, aux = self._decode(
      inputs=inputs,
      cache=cache,
      tokens_to_logits=functools.partial(
        self._compute_logits_from_slice,
        params=params,
        max_decode_length=inputs.shape[1],
      ),
      initial_index=lengths,
      num_decodes=num_decodes,
      return_all_decodes=return_all_decodes,
      rng=rng,
      decoder_params=decoder_params,
    )
    return remove_prefix(tokens, lengths), aux


@jax.vmap
def remove_prefix(sequence: jax.Array, prefix_length: jax.Array) -> jax.Array:
  """Drops the first tokens of each row and fills with zeros at the end.

  Args:
    sequence: i32[B, ..., N].
    prefix_length: i32[B].

  Returns:
    i32[B, ..., N].
  """
  in_prefix = jnp.arange(sequence.shape[-1]) < prefix_length
  return jnp.roll(jnp.where(in_prefix, 0, sequence), -prefix_length, axis=-1)
