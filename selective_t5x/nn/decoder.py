"""The decoder of every network: a stack of layers between tokens and logits.

Names, shapes, logical axes and initial values of parameters are T5X's.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning

from selective_t5x.attention import masks
from selective_t5x.nn import cache, layers, settings, stacking, t5_layers
from selective_t5x.nn.call import Call
from selective_t5x.nn.self_attention import SelfAttention


def dropout(cfg: settings.DecoderSettings, call: Call) -> nn.Dropout:
  """Makes dropout with one mask for all positions, as in T5X."""
  return nn.Dropout(
    cfg.dropout_rate, broadcast_dims=(-2,), deterministic=call.deterministic
  )


def norm(cfg: settings.DecoderSettings, name: str) -> nn.Module:
  """Makes a norm of the calling module."""
  return layers.RMSNorm(
    dtype=cfg.dtype,
    epsilon=cfg.norm_epsilon,
    adds_one=cfg.norm_adds_one,
    name=name,
  )


def relative_bias(
  cfg: settings.DecoderSettings, *, both_ways: bool
) -> nn.Module:
  """Makes the relative biases of the calling module, with T5X's name."""
  return t5_layers.RelativeBias(
    cfg.num_heads, both_ways=both_ways, dtype=cfg.dtype, name='relpos_bias'
  )


def feed_forward(
  cfg: settings.DecoderSettings, x: jax.Array, call: Call
) -> jax.Array:
  """Adds the normalised feed-forward block of the calling layer to x."""
  y = norm(cfg, 'pre_mlp_layer_norm')(x)
  y = layers.FeedForward(
    cfg.mlp_dim,
    cfg.mlp_activations,
    cfg.dropout_rate,
    cfg.dtype,
    cfg.mlp_bias,
    name='mlp',
  )(y, deterministic=call.deterministic)
  return x + dropout(cfg, call)(y)


class DecoderLayer(nn.Module):
  """Self-attention, attention to an encoder's output, and feed-forward.

  Each block normalises its input and adds its output. Without an encoder the
  second block is absent.

  Attributes:
    config: the settings.
    relative_bias: the biases that all layers share; None if each layer has its
      own, or there are none.
    layer: the layer's number, from 0.
  """

  config: settings.DecoderSettings
  relative_bias: nn.Module | None
  layer: int

  @nn.compact
  def __call__(self, x: jax.Array, call: Call) -> jax.Array:
    """Maps [B, N, M] to [B, N, M]."""
    cfg = self.config
    bias_fn = self.relative_bias
    if cfg.has_relative_bias and bias_fn is None:
      bias_fn = relative_bias(cfg, both_ways=False)
    y = norm(cfg, 'pre_self_attention_layer_norm')(x)
    y = SelfAttention(
      cfg.num_heads,
      cfg.head_dim,
      cfg.attention_fn,
      cfg.dropout_rate,
      cfg.dtype,
      policy=None if cfg.pruning is None else cfg.pruning.policy,
      extension=cfg.attention_extension,
      layer=self.layer,
      split_kernels=cfg.scan_layers,
      name='self_attention',
      **cfg.self_attention,
    )(y, call, bias_fn)
    x = x + dropout(cfg, call)(y)
    if call.encoded is not None:
      y = norm(cfg, 'pre_cross_attention_layer_norm')(x)
      y = t5_layers.Attention(
        cfg.num_heads,
        cfg.head_dim,
        dropout_rate=cfg.dropout_rate,
        dtype=cfg.dtype,
        split_kernels=cfg.scan_layers,
        name='encoder_decoder_attention',
        **cfg.other_attention,
      )(
        y,
        call.encoded,
        call.segment_ids,
        call.encoder_ids,
        deterministic=call.deterministic,
      )
      x = x + dropout(cfg, call)(y)
    return partitioning.with_sharding_constraint(
      feed_forward(cfg, x, call), ('batch', 'length', 'embed')
    )


class Decoder(nn.Module):
  """A stack of decoder layers between token embedding and logits.

  Attributes:
    config: the settings.
    token_embedder: shared with the encoder; None makes a new one.
  """

  config: settings.DecoderSettings
  token_embedder: nn.Module | None = None

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    targets: jax.Array,
    call: Call,
    *,
    positions: jax.Array | None = None,
    decode: bool = False,
    prefill: bool | None = False,
    prefill_lengths: jax.Array | None = None,
    budgets: jax.Array | None = None,
  ) -> jax.Array:
    """Returns f32[B, N, vocab_size], the logits.

    Args:
      tokens: i32[B, N].
      targets: i32[B, N], 0 for padding; only read to count prefill_lengths.
      call: the other facts of the call, without place and budgets.
      positions: i32[B, N], rows of the position embedding, or the positions of
        rotary embeddings; None counts along the row. Not read while decoding,
        nor with relative biases.
      decode: as in `cache.place`.
      prefill: as in `cache.place`.
      prefill_lengths: i32[B], the tokens of each prompt; None counts the
        targets that are not 0.
      budgets: i32[L], replaces the config's for whole rows; may be traced, see
        `pruning.Pruning`.

    Raises:
      UserError: if there is a prefix and the attention function takes none.
      ValueError: if a decoding step does not fit the cache, or the budgets do
        not fit the network.
    """
    cfg = self.config
    if call.prefix is not None:
      settings.check_takes_prefix(cfg.attention_fn)
    if prefill and prefill_lengths is None:
      prefill_lengths = jnp.sum(targets > 0, axis=1)
    place = cache.place(
      self,
      tokens,
      decode=decode,
      prefill=prefill,
      prefill_lengths=prefill_lengths,
    )
    call = call.replace(
      place=place,
      positions=positions,
      budgets=settings.layer_budgets(cfg, budgets, place, tokens.shape[1]),
    )
    shared_bias = None
    if cfg.has_relative_bias and not cfg.scan_layers:
      shared_bias = relative_bias(cfg, both_ways=False)
    embedder = self.token_embedder
    if embedder is None:
      embedder = layers.Embed(
        cfg.vocab_size, cfg.emb_dim, dtype=cfg.dtype, name='token_embedder'
      )
    if cfg.bos_id:
      tokens = _with_bos(tokens, cfg.bos_id, call)
    x = embedder(tokens)
    if cfg.embedding_scale != 1:
      x *= jnp.asarray(cfg.embedding_scale, x.dtype)
    if cfg.max_length is not None and cfg.rotary is None:
      x += self._embedded_positions(tokens.shape[1], positions, place)
    x = stacking.run(
      self,
      partitioning.with_sharding_constraint(
        dropout(cfg, call)(x), ('batch', 'length', 'embed')
      ),
      call,
      make=functools.partial(DecoderLayer, cfg, shared_bias),
      layers=cfg.decoder_layers,
      name='decoder',
      scan=settings.scans(self, place),
    )
    x = dropout(cfg, call)(norm(cfg, 'decoder_norm')(x))
    scale = cfg.logits_scale
    if cfg.logits_via_embedding:
      # Entries of the embedding have unit size, of a logit matrix M ** -0.5.
      scale = cfg.emb_dim**-0.5 if scale is None else scale
      return embedder.attend(x) * scale
    dtype = jnp.promote_types(cfg.dtype, jnp.float32)
    logits = layers.Dense(
      cfg.vocab_size, ('embed', 'vocab'), dtype, name='logits_dense'
    )(x)
    return logits if scale is None else logits * scale

  def _embedded_positions(self, length, positions, place):
    """Returns the embeddings of positions, [B or 1, N, M]."""
    cfg = self.config
    if place is not None and place.position is not None:
      # Finished rows may run on while others decode.
      positions = jnp.minimum(place.position, cfg.max_length - 1)[:, None]
    elif positions is None:
      positions = jnp.arange(length)[None]
    return layers.Embed(
      cfg.max_length,
      cfg.emb_dim,
      axis='abspos_buckets',
      embedding_init=layers.POSITION_INIT,
      dtype=cfg.dtype,
      name='position_embedder',
    )(positions)


def _with_bos(tokens, bos_id, call):
  """Puts <BOS> where the first token of a segment is 0, i32[B, N]."""
  length = tokens.shape[1]
  if call.place is None:
    first = masks.first_in_segment(length, call.segment_ids)
  elif call.place.position is None:
    first = jnp.arange(length)[None] == 0
  else:
    first = call.place.position[:, None] == 0
  return jnp.where(first & (tokens == 0), bos_id, tokens)
