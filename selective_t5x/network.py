"""The paper's decoder-only language model.

Source: arXiv 2410.02703: pre-norm RMSNorm, learned positions, SwiGLU, query/key
normalisation, no biases, untied output embedding. Parameters and settings have
T5X's names.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from selective_t5x import attention
from selective_t5x.errors import UserError
from selective_t5x.nn import decoder, settings
from selective_t5x.nn.call import Call
from selective_t5x.nn.extensions import Extension
from selective_t5x.pruning import Pruning


@dataclasses.dataclass(frozen=True)
class DecoderConfig(settings.DecoderSettings):
  """Settings of the decoder; gin/architectures/decoder.gin binds them.

  Attributes, beside those of `settings.DecoderSettings`:
    max_length: rows of the position embedding, the longest readable row.
    num_layers: L.
  """

  vocab_size: int
  max_length: int
  emb_dim: int = 512
  num_heads: int = 8
  head_dim: int = 64
  num_layers: int = 8
  mlp_dim: int = 1408
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  attention_fn: Callable[..., Any] = attention.causal_attention
  pruning: Pruning | None = None
  attention_extension: Callable[..., Extension] | None = None
  scan_layers: bool = False
  remat_policy: str = 'none'
  unroll_layers: bool = False

  @property
  def decoder_layers(self) -> int:
    """L."""
    return self.num_layers


class Decoder(decoder.Decoder):
  """The stack of layers between token embedding and logits."""

  config: DecoderConfig

  @nn.compact
  def __call__(
    self,
    decoder_input_tokens: jax.Array,
    decoder_target_tokens: jax.Array,
    decoder_segment_ids: jax.Array | None = None,
    decoder_positions: jax.Array | None = None,
    decoder_causal_attention: jax.Array | None = None,
    *,
    enable_dropout: bool = True,
    decode: bool = False,
    max_decode_length: int | None = None,
    prefill: bool | None = None,
    prefill_lengths: jax.Array | None = None,
    memory_tau: float | None = None,
    live_keys: bool = False,
    budgets: jax.Array | None = None,
  ) -> jax.Array:
    """Predicts each target token; T5X's DecoderOnlyModel calls it.

    Args:
      decoder_input_tokens: i32[B, N], the targets shifted right. An input id 0
        is <BOS> or padding, so it does not show which tokens are padding.
      decoder_target_tokens: i32[B, N], 0 for padding; read only to find the
        padding of rows without segment ids.
      decoder_segment_ids: i32[B, N] of packed rows, 0 for padding.
      decoder_positions: i32[B, N], positions in the segment; None counts along
        the row.
      decoder_causal_attention: i32[B, N], 1 for the inputs of each segment,
        which then see each other; None for causal attention. Only for attention
        functions that take a prefix: selection is causal.
      enable_dropout: whether dropout is on.
      decode: makes the KV cache for rows of N or, if it exists, decodes the
        next token of each row, i32[B, 1], without padding. See `cache`.
      max_decode_length: T5X's, not read: a cache has its own length.
      prefill: fills the cache with prompts, without padding. Tokens after a
        prompt in its row are ignored.
      prefill_lengths: i32[B], the tokens of each prompt, <BOS> included; None
        counts the target tokens that are not 0.
      memory_tau: a number makes every layer sow M ('intermediates', 'memory').
      live_keys: makes every layer sow how many keys each query reads
        ('intermediates', 'live_keys').
      budgets: i32[L], replaces the config's for whole rows; may be traced, see
        `pruning.Pruning`.

    Returns:
      f32[B, N, vocab_size], the logits.

    Raises:
      UserError: if a row is longer than max_length, or there is a bidirectional
        prefix and the attention function takes none.
      ValueError: if a decoding step does not fit the cache, or the budgets do
        not fit the network.
    """
    del max_decode_length
    cfg = self.config
    length = decoder_input_tokens.shape[-1]
    if length > cfg.max_length:
      raise UserError(
        f'network.Decoder: rows of {length} tokens, but '
        f'network.DecoderConfig.max_length = {cfg.max_length}; raise '
        'MAX_LENGTH or lower TASK_FEATURE_LENGTHS'
      )
    if decoder_segment_ids is None:
      decoder_segment_ids = (decoder_target_tokens > 0).astype(jnp.int32)
    return super().__call__(
      decoder_input_tokens.astype(jnp.int32),
      decoder_target_tokens,
      Call(
        decoder_segment_ids,
        deterministic=not enable_dropout,
        memory_tau=memory_tau,
        live_keys=live_keys,
        prefix=decoder_causal_attention,
      ),
      positions=decoder_positions,
      decode=decode,
      prefill=prefill,
      prefill_lengths=prefill_lengths,
      budgets=budgets,
    )
