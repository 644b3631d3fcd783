"""The stack of decoder layers that T5 and T5X's decoder-only model share.

Source: Raffel et al., arXiv 1910.10683, and for T5 1.1 the t5 package. Names,
shapes, logical axes and initial values of parameters are T5X's.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning

from selective_t5x import attention
from selective_t5x.errors import did_you_mean
from selective_t5x.nn import cache, layers, settings, t5_layers
from selective_t5x.nn import stacking as stacks
from selective_t5x.nn.extensions import Extension
from selective_t5x.nn.self_attention import SelfAttention
from selective_t5x.pruning import Pruning


@dataclasses.dataclass(frozen=True)
class StackConfig(abc.ABC):
  """Settings that every network of T5's kind has, by T5X's names.

  Attributes:
    vocab_size: rows of the token embedding and of the output.
    dtype: of activations; parameters, logits and F stay float32.
    emb_dim: M, the model's width.
    num_heads: H.
    head_dim: D, size of a head.
    mlp_dim: hidden size of the feed-forward block.
    mlp_activations: ('gelu', 'linear') for T5 1.1, ('relu',) for T5 1.0.
    dropout_rate: of embeddings, attention weights, block outputs and hidden
      activations.
    logits_via_embedding: whether the token embedding also gives the logits, as
      in T5 1.0, or a matrix of their own, as in T5 1.1.
    attention_fn: of the decoder's self-attention: `attention.causal_attention`,
      `attention.selective_attention` or a function with their arguments.
    pruning: which keys the decoder's self-attention keeps, and how many a
      layer; None for all.
    attention_extension: of the decoder's self-attention: makes what an
      attention function with parameters of its own needs, a subclass of
      `extensions.Extension`, or None.
    scan_layers: whether the layers' parameters are stacked and their loop is
      compiled once; every layer then has relative biases of its own, as in
      T5X's examples/scalable_t5. Decoding, pruning and what differs by layer
      unroll it.
    remat_policy: what a layer keeps for the backward pass, a name in
      `stacking.REMAT_POLICIES`.
    unroll_layers: unrolls it always; the parameters stay stacked.
  """

  vocab_size: int
  dtype: Any = jnp.float32
  emb_dim: int = 512
  num_heads: int = 8
  head_dim: int = 64
  mlp_dim: int = 2048
  mlp_activations: Sequence[str] = ('relu',)
  dropout_rate: float = 0.1
  logits_via_embedding: bool = False
  attention_fn: Callable[..., Any] = attention.causal_attention
  pruning: Pruning | None = None
  attention_extension: Callable[..., Extension] | None = None
  scan_layers: bool = False
  remat_policy: str = 'none'
  unroll_layers: bool = False

  @property
  def gin_name(self) -> str:
    """What it is called in gin."""
    return f'{type(self).__module__.split(".")[-1]}.{type(self).__name__}'

  @property
  @abc.abstractmethod
  def decoder_layers(self) -> int:
    """L, the layers of the decoder: each kind of network has its own name."""

  def __post_init__(self):
    """Refuses what would fail later and less clearly."""
    name = self.gin_name
    settings.check_settings(self, name)
    settings.check_function(self, name, 'attention_fn')
    settings.check_extension(self, name)
    settings.check_pruning(self, name, self.decoder_layers)
    # gin gives lists; a tuple can be hashed, as flax asks of a config.
    activations = self.mlp_activations
    if isinstance(activations, str) or not activations:
      settings.refuse(
        self, name, 'mlp_activations', "names, e.g. ('gelu', 'linear')"
      )
    object.__setattr__(self, 'mlp_activations', tuple(activations))
    for activation in self.mlp_activations:
      if activation not in layers.ACTIVATIONS:
        settings.refuse(
          self,
          name,
          'mlp_activations',
          f'names among {", ".join(layers.ACTIVATIONS)}'
          f'{did_you_mean(str(activation), layers.ACTIVATIONS)}',
        )


def dropout(cfg: StackConfig, deterministic: bool) -> nn.Dropout:
  """One mask for all positions, as T5X has it but at the encoder's end."""
  return nn.Dropout(
    cfg.dropout_rate, broadcast_dims=(-2,), deterministic=deterministic
  )


def relative_bias(cfg: StackConfig, *, both_ways: bool) -> nn.Module:
  """The biases of the calling module, by T5X's name."""
  return t5_layers.RelativeBias(
    cfg.num_heads, both_ways=both_ways, dtype=cfg.dtype, name='relpos_bias'
  )


def feed_forward(cfg: StackConfig, x: jax.Array, deterministic: bool):
  """The normalised feed-forward block of the calling layer, with dropout."""
  y = layers.RMSNorm(dtype=cfg.dtype, name='pre_mlp_layer_norm')(x)
  y = layers.FeedForward(
    cfg.mlp_dim, cfg.mlp_activations, cfg.dropout_rate, cfg.dtype, name='mlp'
  )(y, deterministic=deterministic)
  return dropout(cfg, deterministic)(y)


class DecoderLayer(nn.Module):
  """Self-attention, attention to an encoder's output, and feed-forward.

  Where there is no encoder, the second is left out.

  Attributes:
    config: the settings.
    relative_bias: the decoder's, shared by its layers; None makes its own.
    layer: its number, from 0.
  """

  config: StackConfig
  relative_bias: nn.Module | None
  layer: int

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    encoded: jax.Array | None,
    segment_ids: jax.Array,
    encoder_ids: jax.Array | None,
    *,
    deterministic: bool,
    memory_tau: float | None = None,
    prefix: jax.Array | None = None,
    where: cache.Place | None = None,
    budget: jax.Array | None = None,
  ) -> jax.Array:
    """Maps [B, N, M] to [B, N, M].

    Args:
      x: [B, N, M].
      encoded: [B, K, M], or None without an encoder.
      segment_ids: i32[B, N], 0 for padding.
      encoder_ids: i32[B, K], 0 for padding, or None without an encoder.
      deterministic: whether dropout is off.
      memory_tau: as of SelfAttention.
      prefix: as of SelfAttention.
      where: the place in the cache while decoding, else None.
      budget: i32[], as of SelfAttention.
    """
    cfg = self.config
    bias_fn = self.relative_bias or relative_bias(cfg, both_ways=False)
    y = layers.RMSNorm(dtype=cfg.dtype, name='pre_self_attention_layer_norm')(x)
    y = SelfAttention(
      cfg.num_heads,
      cfg.head_dim,
      cfg.attention_fn,
      cfg.dropout_rate,
      cfg.dtype,
      normalise=False,
      scale=1.0,
      kernel_init=t5_layers.KERNEL_INIT,
      query_init=t5_layers.query_init(cfg.head_dim),
      pruning=cfg.pruning
      and cfg.pruning.of_layer(self.layer, cfg.decoder_layers),
      extension=cfg.attention_extension,
      layer=self.layer,
      split_kernels=cfg.scan_layers,
      name='self_attention',
    )(
      y,
      segment_ids,
      deterministic=deterministic,
      memory_tau=memory_tau,
      prefix=prefix,
      bias_fn=bias_fn,
      where=where,
      budget=budget,
    )
    x = x + dropout(cfg, deterministic)(y)
    if encoded is not None:
      y = layers.RMSNorm(
        dtype=cfg.dtype, name='pre_cross_attention_layer_norm'
      )(x)
      y = t5_layers.Attention(
        cfg.num_heads,
        cfg.head_dim,
        dropout_rate=cfg.dropout_rate,
        dtype=cfg.dtype,
        split_kernels=cfg.scan_layers,
        name='encoder_decoder_attention',
      )(y, encoded, segment_ids, encoder_ids, deterministic=deterministic)
      x = x + dropout(cfg, deterministic)(y)
    return x + feed_forward(cfg, x, deterministic)


class Decoder(nn.Module):
  """A stack of decoder layers between token embedding and logits.

  Attributes:
    config: the settings.
    token_embedder: shared with the encoder; None makes one of its own.
  """

  config: StackConfig
  token_embedder: nn.Module | None = None

  @nn.compact
  def __call__(
    self,
    encoded: jax.Array | None,
    tokens: jax.Array,
    segment_ids: jax.Array,
    encoder_ids: jax.Array | None,
    *,
    deterministic: bool,
    decode: bool = False,
    prefill: bool = False,
    prefill_lengths: jax.Array | None = None,
    memory_tau: float | None = None,
    prefix: jax.Array | None = None,
    budgets: jax.Array | None = None,
  ) -> jax.Array:
    """Returns f32[B, N, vocab_size], the logits.

    Args:
      encoded: [B, K, M], or None without an encoder.
      tokens: i32[B, N].
      segment_ids: i32[B, N], 0 for padding.
      encoder_ids: i32[B, K], 0 for padding, or None without an encoder.
      deterministic: whether dropout is off.
      decode: see `cache.place`.
      prefill: see `cache.place`.
      prefill_lengths: see `cache.place`.
      memory_tau: as of SelfAttention.
      prefix: as of SelfAttention.
      budgets: i32[L], in place of the config's for whole rows; may be traced,
        see `pruning.Pruning`.
    """
    cfg = self.config
    where = cache.place(
      self,
      tokens,
      decode=decode,
      prefill=prefill,
      prefill_lengths=prefill_lengths,
    )
    shared_bias = None
    if not cfg.scan_layers:
      shared_bias = relative_bias(cfg, both_ways=False)
    token_embedder = self.token_embedder
    if token_embedder is None:
      token_embedder = layers.Embed(
        cfg.vocab_size, cfg.emb_dim, dtype=cfg.dtype, name='token_embedder'
      )
    x = dropout(cfg, deterministic)(token_embedder(tokens))
    x = partitioning.with_sharding_constraint(x, ('batch', 'length', 'embed'))
    scan = settings.scans(self, cfg, budgets, where)
    budgets = settings.layer_budgets(cfg, cfg.decoder_layers, budgets, where)
    x = stacks.run(
      self,
      x,
      make=lambda parent, i, name: DecoderLayer(
        cfg, shared_bias, i, parent=parent, name=name
      ),
      call=lambda layer, x, i: layer(
        x,
        encoded,
        segment_ids,
        encoder_ids,
        deterministic=deterministic,
        memory_tau=memory_tau,
        prefix=prefix,
        where=where,
        budget=budgets[i],
      ),
      layers=cfg.decoder_layers,
      name='decoder',
      remat_policy=cfg.remat_policy,
      stacked=cfg.scan_layers,
      scan=scan,
    )
    x = layers.RMSNorm(dtype=cfg.dtype, name='decoder_norm')(x)
    x = dropout(cfg, deterministic)(x)
    if cfg.logits_via_embedding:
      # Its entries are of unit size, those of a logit matrix of M ** -0.5.
      return token_embedder.attend(x) * cfg.emb_dim**-0.5
    dtype = jnp.promote_types(cfg.dtype, jnp.float32)
    return layers.Dense(
      cfg.vocab_size, ('embed', 'vocab'), dtype, name='logits_dense'
    )(x)


def segments(tokens: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
  """Returns i32[B, N], the segments, 0 where the token is padding."""
  live = tokens > 0
  if segment_ids is None:
    return live.astype(jnp.int32)
  return jnp.where(live, segment_ids, 0)
