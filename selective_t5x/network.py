"""The paper's decoder-only language model, and those of its family.

Source: arXiv 2410.02703: pre-norm RMSNorm, learned positions, SwiGLU, query/key
normalisation, no biases, untied output embedding. Parameters and settings have
T5X's names. Other settings make it a Llama, Qwen or Gemma: rotary positions,
grouped queries, biases, another norm, embedding and logits.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from selective_t5x import attention
from selective_t5x.attention.rotary import Rotary
from selective_t5x.errors import UserError, is_integer, is_number
from selective_t5x.nn import decoder, settings
from selective_t5x.nn.call import Call
from selective_t5x.nn.extensions import Extension
from selective_t5x.pruning import Pruning


@dataclasses.dataclass(frozen=True)
class DecoderConfig(settings.DecoderSettings):
  """Settings of the decoder; gin/architectures/decoder.gin binds them.

  Attributes, beside those of `settings.DecoderSettings`:
    max_length: the longest readable row; with learned positions also the rows
      of their embedding.
    num_layers: L.
    qk_norm: whether queries and keys are normalised over the head dimension, as
      in the paper and in Qwen3.
    qkv_bias: whether the projections to queries, keys and values have biases.
    out_bias: whether the attention's output projection has one.
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
  mlp_activations: Sequence[str] = ('silu', 'linear')
  rotary: Rotary | None = None
  num_kv_heads: int | None = None
  qk_norm: bool = True
  qkv_bias: bool = False
  out_bias: bool = False
  mlp_bias: bool = False
  norm_epsilon: float = 1e-6
  norm_adds_one: bool = False
  embedding_scale: float = 1.0
  logits_via_embedding: bool = False
  logits_scale: float | None = None
  bos_id: int = 0

  @property
  def decoder_layers(self) -> int:
    """L."""
    return self.num_layers

  @property
  def self_attention(self) -> Mapping[str, Any]:
    """The attributes of SelfAttention that differ from its defaults."""
    return {
      'num_kv_heads': self.num_kv_heads,
      'rotary': self.rotary,
      'normalise': self.qk_norm,
      'norm_epsilon': self.norm_epsilon,
      'norm_adds_one': self.norm_adds_one,
      'qkv_bias': self.qkv_bias,
      'out_bias': self.out_bias,
    }

  def __post_init__(self):
    """Refuses settings that would fail later and less clearly."""
    super().__post_init__()
    heads = self.num_kv_heads
    if heads is not None and (
      not is_integer(heads) or heads < 1 or self.num_heads % heads
    ):
      settings.refuse(
        self,
        'num_kv_heads',
        f'None or a divisor of num_heads = {self.num_heads} (NUM_KV_HEADS)',
      )
    for name in (
      'qk_norm',
      'qkv_bias',
      'out_bias',
      'mlp_bias',
      'norm_adds_one',
      'logits_via_embedding',
    ):
      if not isinstance(getattr(self, name), bool):
        settings.refuse(self, name, 'True or False')
    for name in ('norm_epsilon', 'embedding_scale', 'logits_scale'):
      value = getattr(self, name)
      none = name == 'logits_scale' and value is None
      if not none and (not is_number(value) or not value > 0):
        settings.refuse(self, name, 'a positive number')
    if not is_integer(self.bos_id) or not 0 <= self.bos_id < self.vocab_size:
      settings.refuse(self, 'bos_id', 'an id of the vocabulary, or 0')
    if self.rotary is not None:
      if not isinstance(self.rotary, Rotary):
        settings.refuse(self, 'rotary', '@network.Rotary() or None (ROTARY)')
      self.rotary.frequencies(self.head_dim)
    settings.check_activations(self)


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
