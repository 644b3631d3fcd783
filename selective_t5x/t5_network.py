"""T5's encoder-decoder, with an injected function in decoder self-attention.

Source: Raffel et al., arXiv 1910.10683, and for T5 1.1 the t5 package. The
modules' protocol and the names, shapes, logical axes and initial values of the
parameters are those of T5X's examples/t5, so that its checkpoints fit. With
selection off the logits are T5X's too, in float32; in bfloat16 attention logits
stay float32 here. Padding rows of the decoder, whose logits mean nothing,
attend to nothing here and to everything in T5X.
"""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning

from selective_t5x import attention, cache, layers, network, t5_layers
from selective_t5x.errors import UserError, did_you_mean

_NAME = 't5_network.T5Config'


@dataclasses.dataclass(frozen=True)
class T5Config:
  """Settings of T5, by T5X's names; gin/architectures/t5.gin binds them all.

  Attributes:
    vocab_size: rows of the token embedding and of the output.
    dtype: of activations; parameters, logits and F stay float32.
    emb_dim: M, the model's width.
    num_heads: H.
    num_encoder_layers: layers of the encoder.
    num_decoder_layers: layers of the decoder.
    head_dim: D, size of a head.
    mlp_dim: hidden size of the feed-forward block.
    mlp_activations: ('gelu', 'linear') for T5 1.1, ('relu',) for T5 1.0.
    dropout_rate: of embeddings, attention weights, block outputs and hidden
      activations.
    logits_via_embedding: whether the token embedding also gives the logits, as
      in T5 1.0, or a matrix of their own, as in T5 1.1.
    attention_fn: of the decoder's self-attention: `attention.causal_attention`,
      `attention.selective_attention` or a function with their arguments.
    encoder_attention_fn: `attention.full_attention` or a function with its
      arguments. Not a selective one: selection is causal.
  """

  vocab_size: int
  dtype: Any = jnp.float32
  emb_dim: int = 512
  num_heads: int = 8
  num_encoder_layers: int = 6
  num_decoder_layers: int = 6
  head_dim: int = 64
  mlp_dim: int = 2048
  mlp_activations: Sequence[str] = ('relu',)
  dropout_rate: float = 0.1
  logits_via_embedding: bool = False
  attention_fn: Callable[..., Any] = attention.causal_attention
  encoder_attention_fn: Callable[..., Any] = attention.full_attention

  def __post_init__(self):
    """Refuses what would fail later and less clearly."""
    network.check_settings(self, _NAME)
    network.check_function(self, _NAME, 'attention_fn')
    network.check_function(self, _NAME, 'encoder_attention_fn')
    # gin gives lists; a tuple can be hashed, as flax asks of a config.
    activations = self.mlp_activations
    if isinstance(activations, str) or not activations:
      network.refuse(
        self, _NAME, 'mlp_activations', "names, e.g. ('gelu', 'linear')"
      )
    object.__setattr__(self, 'mlp_activations', tuple(activations))
    for name in self.mlp_activations:
      if name not in layers.ACTIVATIONS:
        network.refuse(
          self,
          _NAME,
          'mlp_activations',
          f'names among {", ".join(layers.ACTIVATIONS)}'
          f'{did_you_mean(str(name), layers.ACTIVATIONS)}',
        )
    encoder_fn = self.encoder_attention_fn
    if 'key_ids' not in inspect.signature(encoder_fn).parameters:
      name = getattr(encoder_fn, '__name__', encoder_fn)
      raise UserError(
        f'{_NAME}.encoder_attention_fn = {name}: it is causal, '
        'as selection is, but an encoder reads both ways; selection belongs to '
        'the decoder (ATTENTION), expected here is @attention.full_attention'
      )


def _dropout(cfg: T5Config, deterministic: bool) -> nn.Dropout:
  """One mask for all positions, as T5X has it but at the encoder's end."""
  return nn.Dropout(
    cfg.dropout_rate, broadcast_dims=(-2,), deterministic=deterministic
  )


def _feed_forward(cfg: T5Config, x: jax.Array, deterministic: bool):
  """The normalised feed-forward block of the calling layer, with dropout."""
  y = layers.RMSNorm(dtype=cfg.dtype, name='pre_mlp_layer_norm')(x)
  y = layers.FeedForward(
    cfg.mlp_dim, cfg.mlp_activations, cfg.dropout_rate, cfg.dtype, name='mlp'
  )(y, deterministic=deterministic)
  return _dropout(cfg, deterministic)(y)


class EncoderLayer(nn.Module):
  """Attention both ways and feed-forward, each normalised first and added."""

  config: T5Config

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    segment_ids: jax.Array,
    bias: jax.Array,
    *,
    deterministic: bool,
  ) -> jax.Array:
    """Maps [B, N, M] to [B, N, M]; bias is [1, H, N, N]."""
    cfg = self.config
    y = layers.RMSNorm(dtype=cfg.dtype, name='pre_attention_layer_norm')(x)
    y = t5_layers.Attention(
      cfg.num_heads,
      cfg.head_dim,
      cfg.encoder_attention_fn,
      cfg.dropout_rate,
      cfg.dtype,
      name='attention',
    )(y, y, segment_ids, segment_ids, deterministic=deterministic, bias=bias)
    x = x + _dropout(cfg, deterministic)(y)
    return x + _feed_forward(cfg, x, deterministic)


class DecoderLayer(nn.Module):
  """Self-attention, attention to the encoder's output, and feed-forward.

  Attributes:
    config: the settings.
    relative_bias: the decoder's, shared by its layers.
  """

  config: T5Config
  relative_bias: nn.Module

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    encoded: jax.Array,
    segment_ids: jax.Array,
    encoder_ids: jax.Array,
    *,
    deterministic: bool,
    memory_tau: float | None = None,
    where: cache.Place | None = None,
  ) -> jax.Array:
    """Maps [B, N, M] to [B, N, M].

    Args:
      x: [B, N, M].
      encoded: [B, K, M].
      segment_ids: i32[B, N], 0 for padding.
      encoder_ids: i32[B, K], 0 for padding.
      deterministic: whether dropout is off.
      memory_tau: as of layers.SelfAttention.
      where: the place in the cache while decoding, else None.
    """
    cfg = self.config
    y = layers.RMSNorm(dtype=cfg.dtype, name='pre_self_attention_layer_norm')(x)
    y = layers.SelfAttention(
      cfg.num_heads,
      cfg.head_dim,
      cfg.attention_fn,
      cfg.dropout_rate,
      cfg.dtype,
      normalise=False,
      scale=1.0,
      kernel_init=t5_layers.KERNEL_INIT,
      query_init=t5_layers.query_init(cfg.head_dim),
      name='self_attention',
    )(
      y,
      segment_ids,
      deterministic=deterministic,
      memory_tau=memory_tau,
      bias_fn=self.relative_bias,
      where=where,
    )
    x = x + _dropout(cfg, deterministic)(y)
    y = layers.RMSNorm(dtype=cfg.dtype, name='pre_cross_attention_layer_norm')(
      x
    )
    y = t5_layers.Attention(
      cfg.num_heads,
      cfg.head_dim,
      dropout_rate=cfg.dropout_rate,
      dtype=cfg.dtype,
      name='encoder_decoder_attention',
    )(y, encoded, segment_ids, encoder_ids, deterministic=deterministic)
    x = x + _dropout(cfg, deterministic)(y)
    return x + _feed_forward(cfg, x, deterministic)


class Encoder(nn.Module):
  """A stack of encoder layers.

  Attributes:
    config: the settings.
    token_embedder: shared with the decoder.
  """

  config: T5Config
  token_embedder: nn.Module

  @nn.compact
  def __call__(
    self, tokens: jax.Array, segment_ids: jax.Array, *, deterministic: bool
  ) -> jax.Array:
    """Maps i32[B, K] to [B, K, M]; segment_ids are i32[B, K]."""
    cfg = self.config
    bias = t5_layers.RelativeBias(
      cfg.num_heads, both_ways=True, dtype=cfg.dtype, name='relpos_bias'
    )(tokens.shape[1])
    x = _dropout(cfg, deterministic)(self.token_embedder(tokens))
    x = partitioning.with_sharding_constraint(x, ('batch', 'length', 'embed'))
    for i in range(cfg.num_encoder_layers):
      x = EncoderLayer(cfg, name=f'layers_{i}')(
        x, segment_ids, bias, deterministic=deterministic
      )
    x = layers.RMSNorm(dtype=cfg.dtype, name='encoder_norm')(x)
    return nn.Dropout(cfg.dropout_rate, deterministic=deterministic)(x)


class Decoder(nn.Module):
  """A stack of decoder layers between token embedding and logits.

  Attributes:
    config: the settings.
    token_embedder: shared with the encoder.
  """

  config: T5Config
  token_embedder: nn.Module

  @nn.compact
  def __call__(
    self,
    encoded: jax.Array,
    tokens: jax.Array,
    segment_ids: jax.Array,
    encoder_ids: jax.Array,
    *,
    deterministic: bool,
    decode: bool = False,
    prefill: bool = False,
    prefill_lengths: jax.Array | None = None,
    memory_tau: float | None = None,
  ) -> jax.Array:
    """Returns f32[B, N, vocab_size]; arguments as of Transformer.decode."""
    cfg = self.config
    where = cache.place(
      self,
      tokens,
      decode=decode,
      prefill=prefill,
      prefill_lengths=prefill_lengths,
    )
    relative_bias = t5_layers.RelativeBias(
      cfg.num_heads, both_ways=False, dtype=cfg.dtype, name='relpos_bias'
    )
    x = _dropout(cfg, deterministic)(self.token_embedder(tokens))
    x = partitioning.with_sharding_constraint(x, ('batch', 'length', 'embed'))
    for i in range(cfg.num_decoder_layers):
      x = DecoderLayer(cfg, relative_bias, name=f'layers_{i}')(
        x,
        encoded,
        segment_ids,
        encoder_ids,
        deterministic=deterministic,
        memory_tau=memory_tau,
        where=where,
      )
    x = layers.RMSNorm(dtype=cfg.dtype, name='decoder_norm')(x)
    x = _dropout(cfg, deterministic)(x)
    if cfg.logits_via_embedding:
      # Its entries are of unit size, those of a logit matrix of M ** -0.5.
      return self.token_embedder.attend(x) * cfg.emb_dim**-0.5
    dtype = jnp.promote_types(cfg.dtype, jnp.float32)
    return layers.Dense(
      cfg.vocab_size, ('embed', 'vocab'), dtype, name='logits_dense'
    )(x)


class Transformer(nn.Module):
  """T5, called as T5X's EncoderDecoderModel does."""

  config: T5Config

  def setup(self):
    """Makes the parts; parameters: token_embedder, encoder and decoder."""
    cfg = self.config
    self.token_embedder = layers.Embed(
      cfg.vocab_size, cfg.emb_dim, dtype=cfg.dtype
    )
    self.encoder = Encoder(cfg, self.token_embedder)
    self.decoder = Decoder(cfg, self.token_embedder)

  def encode(
    self,
    encoder_input_tokens: jax.Array,
    encoder_segment_ids: jax.Array | None = None,
    enable_dropout: bool = True,
  ) -> jax.Array:
    """Encodes the inputs.

    Args:
      encoder_input_tokens: i32[B, K], 0 for padding.
      encoder_segment_ids: i32[B, K] of packed rows, 0 for padding.
      enable_dropout: whether dropout is on.

    Returns:
      [B, K, M].
    """
    return self.encoder(
      encoder_input_tokens.astype(jnp.int32),
      _segments(encoder_input_tokens, encoder_segment_ids),
      deterministic=not enable_dropout,
    )

  def decode(
    self,
    encoded: jax.Array,
    encoder_input_tokens: jax.Array,
    decoder_input_tokens: jax.Array,
    decoder_target_tokens: jax.Array,
    encoder_segment_ids: jax.Array | None = None,
    decoder_segment_ids: jax.Array | None = None,
    decoder_positions: jax.Array | None = None,
    enable_dropout: bool = True,
    decode: bool = False,
    max_decode_length: int | None = None,
    prefill: bool = False,
    prefill_lengths: jax.Array | None = None,
    memory_tau: float | None = None,
  ) -> jax.Array:
    """Predicts each target token from the inputs and the targets before it.

    Args:
      encoded: [B, K, M], from `encode`.
      encoder_input_tokens: i32[B, K]; tells which inputs are padding.
      decoder_input_tokens: i32[B, N], the targets shifted right. Id 0 is T5's
        start token too, so padding is never told from it.
      decoder_target_tokens: i32[B, N], 0 for padding.
      encoder_segment_ids: i32[B, K] of packed rows, 0 for padding.
      decoder_segment_ids: i32[B, N] of packed rows, 0 for padding.
      decoder_positions: T5X's, not needed: biases go by distance.
      enable_dropout: whether dropout is on.
      decode: makes the decoding cache for rows of N, or with one decodes the
        next token of each row, i32[B, 1]; no target is padding then. See
        `cache`.
      max_decode_length: T5X's, not needed: a cache has its own length.
      prefill: fills the cache with prompts; what follows a prompt is ignored.
      prefill_lengths: i32[B], the tokens of each prompt, the start included;
        None counts the target tokens that are not 0.
      memory_tau: with a number, every layer of the decoder sows M
        ('intermediates', 'memory').

    Returns:
      f32[B, N, vocab_size], the logits.

    Raises:
      ValueError: if rows are packed in decoding, or do not fit the cache.
    """
    del decoder_positions, max_decode_length
    decoding = decode or prefill
    if decoding and encoder_segment_ids is not None:
      raise ValueError('packed rows cannot be decoded: encoder_segment_ids')
    if prefill and prefill_lengths is None:
      prefill_lengths = jnp.sum(decoder_target_tokens > 0, axis=1)
    if decoding:
      segment_ids = jnp.ones(decoder_input_tokens.shape, jnp.int32)
    else:
      segment_ids = _segments(decoder_target_tokens, decoder_segment_ids)
    return self.decoder(
      encoded,
      decoder_input_tokens.astype(jnp.int32),
      segment_ids,
      _segments(encoder_input_tokens, encoder_segment_ids),
      deterministic=not enable_dropout,
      decode=decode,
      prefill=prefill,
      prefill_lengths=prefill_lengths,
      memory_tau=memory_tau,
    )

  def __call__(
    self,
    encoder_input_tokens: jax.Array,
    decoder_input_tokens: jax.Array,
    decoder_target_tokens: jax.Array,
    encoder_segment_ids: jax.Array | None = None,
    decoder_segment_ids: jax.Array | None = None,
    encoder_positions: jax.Array | None = None,
    decoder_positions: jax.Array | None = None,
    *,
    enable_dropout: bool = True,
    decode: bool = False,
    memory_tau: float | None = None,
  ) -> jax.Array:
    """Encodes and decodes; arguments as of those, f32[B, N, vocab_size]."""
    del encoder_positions, decoder_positions
    encoded = self.encode(
      encoder_input_tokens, encoder_segment_ids, enable_dropout
    )
    return self.decode(
      encoded,
      encoder_input_tokens,
      decoder_input_tokens,
      decoder_target_tokens,
      encoder_segment_ids,
      decoder_segment_ids,
      enable_dropout=enable_dropout,
      decode=decode,
      memory_tau=memory_tau,
    )


def _segments(tokens: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
  """Returns i32[B, N], the segments, 0 where the token is padding."""
  live = tokens > 0
  if segment_ids is None:
    return live.astype(jnp.int32)
  return jnp.where(live, segment_ids, 0)
