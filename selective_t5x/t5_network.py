"""T5's encoder-decoder with an injected function in decoder self-attention.

Source: Raffel et al., arXiv 1910.10683, and for T5 1.1 the t5 package. The
modules' protocol and the names, shapes, logical axes and initial values of the
parameters are those of T5X's examples/t5, so its checkpoints fit. Without
selection the float32 logits equal T5X's; in bfloat16, attention logits stay
float32 here. Padding rows of the decoder, whose logits are meaningless, attend
to nothing here and to everything in T5X.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning

from selective_t5x import attention
from selective_t5x.attention import capabilities
from selective_t5x.errors import UserError
from selective_t5x.nn import (
  decoder,
  layers,
  settings,
  stacking,
  t5_layers,
  t5_settings,
  t5x_modules,
)
from selective_t5x.nn.call import Call
from selective_t5x.nn.extensions import Extension
from selective_t5x.pruning import Pruning


@dataclasses.dataclass(frozen=True)
class T5Config(t5_settings.StackConfig):
  """Settings of T5, by T5X's names; gin/architectures/t5.gin binds them.

  Attributes:
    num_encoder_layers: layers of the encoder.
    num_decoder_layers: layers of the decoder.
    encoder_attention_fn: `attention.full_attention` or a function with its
      arguments. It cannot be selective: selection is causal.
  """

  num_encoder_layers: int = 6
  num_decoder_layers: int = 6
  encoder_attention_fn: Callable[..., Any] = attention.full_attention

  @property
  def decoder_layers(self) -> int:
    """L, the layers of the decoder."""
    return self.num_decoder_layers

  def __post_init__(self):
    """Refuses settings that would fail later and less clearly."""
    super().__post_init__()
    settings.check_function(self, 'encoder_attention_fn')
    encoder_fn = self.encoder_attention_fn
    if not capabilities.of(encoder_fn).key_ids:
      raise UserError(
        f'{self.gin_name}.encoder_attention_fn = '
        f'{capabilities.name(encoder_fn)}: it is causal, as selection is, but '
        'an encoder reads both ways; selection belongs to the decoder '
        '(ATTENTION), expected here is '
        '@attention.full_attention'
      )


def _bias(cfg, length):
  """Makes the encoder's biases in the calling module, and returns them."""
  return t5_layers.bias_of_rows(
    decoder.relative_bias(cfg, both_ways=True), cfg.encoder_attention_fn, length
  )


class EncoderLayer(nn.Module):
  """Bidirectional attention and feed-forward, pre-norm with residuals."""

  config: T5Config

  @nn.compact
  def __call__(self, x: jax.Array, call: Call) -> jax.Array:
    """Maps [B, N, M] to [B, N, M]."""
    cfg, ids, bias = self.config, call.segment_ids, call.bias
    if bias is None:
      bias = _bias(cfg, x.shape[1])
    y = layers.RMSNorm(dtype=cfg.dtype, name='pre_attention_layer_norm')(x)
    y = t5_layers.Attention(
      cfg.num_heads,
      cfg.head_dim,
      cfg.encoder_attention_fn,
      cfg.dropout_rate,
      cfg.dtype,
      cfg.scan_layers,
      name='attention',
      **cfg.other_attention,
    )(y, y, ids, ids, deterministic=call.deterministic, bias=bias)
    x = x + decoder.dropout(cfg, call)(y)
    return decoder.feed_forward(cfg, x, call)


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
    call = Call(segment_ids, deterministic)
    if not cfg.scan_layers:
      call = call.replace(bias=_bias(cfg, tokens.shape[1]))
    x = decoder.dropout(cfg, call)(self.token_embedder(tokens))
    x = stacking.run(
      self,
      partitioning.with_sharding_constraint(x, ('batch', 'length', 'embed')),
      call,
      make=lambda i, **module: EncoderLayer(cfg, **module),
      layers=cfg.num_encoder_layers,
      name='encoder',
      scan=cfg.scan_layers and not cfg.unroll_layers,
    )
    x = layers.RMSNorm(dtype=cfg.dtype, name='encoder_norm')(x)
    return nn.Dropout(cfg.dropout_rate, deterministic=deterministic)(x)


class Transformer(nn.Module):
  """T5's encoder-decoder, which T5X's EncoderDecoderModel calls."""

  config: T5Config

  def setup(self):
    """Makes the modules token_embedder, encoder and decoder."""
    cfg = self.config
    self.token_embedder = layers.Embed(
      cfg.vocab_size, cfg.emb_dim, dtype=cfg.dtype
    )
    self.encoder = Encoder(cfg, self.token_embedder)
    self.decoder = decoder.Decoder(cfg, self.token_embedder)

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
      t5_settings.segments(encoder_input_tokens, encoder_segment_ids),
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
    live_keys: bool = False,
    budgets: jax.Array | None = None,
  ) -> jax.Array:
    """Predicts each target token from the inputs and the targets before it.

    Args, beside those of `network.Decoder`:
      encoded: [B, K, M], from `encode`.
      encoder_input_tokens: i32[B, K], 0 for padding.
      encoder_segment_ids: i32[B, K] of packed rows, 0 for padding.
      decoder_positions: not read: biases depend on distances.

    Returns:
      f32[B, N, vocab_size], the logits.

    Raises:
      ValueError: if rows are packed in decoding or do not fit the cache, or the
        budgets do not fit the network.
    """
    del decoder_positions, max_decode_length
    decoding = decode or prefill
    if decoding and encoder_segment_ids is not None:
      raise ValueError('packed rows cannot be decoded: encoder_segment_ids')
    if decoding:
      segment_ids = jnp.ones(decoder_input_tokens.shape, jnp.int32)
    else:
      segment_ids = t5_settings.segments(
        decoder_target_tokens, decoder_segment_ids
      )
    return self.decoder(
      decoder_input_tokens.astype(jnp.int32),
      decoder_target_tokens,
      Call(
        segment_ids,
        deterministic=not enable_dropout,
        memory_tau=memory_tau,
        live_keys=live_keys,
        encoded=encoded,
        encoder_ids=t5_settings.segments(
          encoder_input_tokens, encoder_segment_ids
        ),
      ),
      decode=decode,
      prefill=prefill,
      prefill_lengths=prefill_lengths,
      budgets=budgets,
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
    live_keys: bool = False,
    budgets: jax.Array | None = None,
  ) -> jax.Array:
    """Encodes and decodes with their arguments; f32[B, N, vocab_size]."""
    del encoder_positions, decoder_positions
    encoded = self.encode(
      encoder_input_tokens, encoder_segment_ids, enable_dropout
    )
    # Only if they are set: a subclass may have T5X's `decode`, without them.
    measures: dict[str, Any] = {}
    if memory_tau is not None:
      measures['memory_tau'] = memory_tau
    if live_keys:
      measures['live_keys'] = live_keys
    if budgets is not None:
      measures['budgets'] = budgets
    return self.decode(
      encoded,
      encoder_input_tokens,
      decoder_input_tokens,
      decoder_target_tokens,
      encoder_segment_ids,
      decoder_segment_ids,
      enable_dropout=enable_dropout,
      decode=decode,
      **measures,
    )


def from_t5x(
  module: nn.Module,
  attention_fn: Callable[..., Any],
  pruning: Pruning | None = None,
  attention_extension: Callable[..., Extension] | None = None,
) -> nn.Module:
  """Returns T5X's encoder-decoder with another attention in its decoder.

  Gin: gin/t5x/encoder_decoder.gin.

  Args:
    module: a Transformer of T5X's examples/t5, examples/scalable_t5 or
      contrib/gpu/t5; its config has the sizes.
    attention_fn: as in `T5Config`.
    pruning: as in `T5Config`.
    attention_extension: as in `T5Config`.

  Returns:
    `module` itself for plain causal attention, else a `Transformer` with its
    sizes and the same parameters.

  Raises:
    UserError: if the module is another network.
  """
  return t5x_modules.with_attention(
    module,
    Transformer,
    T5Config,
    of_t5x=t5x_modules.ENCODER_DECODERS,
    attention_fn=attention_fn,
    pruning=pruning,
    attention_extension=attention_extension,
  )
