"""The decoder of selective_t5x for transformers, with selection.

Source: Leviathan, Kalman, Matias, "Selective Attention Improves Transformer",
arXiv 2410.02703. `python -m selective_t5x.convert` puts this file beside the
tensors that it exports; `from_pretrained(..., trust_remote_code=True)` runs it.
"""

import math

import torch
import transformers
from torch import nn
from torch.nn import functional
from transformers import modeling_outputs

from .selective_attention import SlotsCache, attend, live_tokens

_ACTIVATIONS = {
  'gelu': lambda x: functional.gelu(x, approximate='tanh'),
  'linear': lambda x: x,
  'relu': functional.relu,
  'silu': functional.silu,
  'swish': functional.silu,
}


class SelectiveDecoderConfig(transformers.PretrainedConfig):
  """The settings of selective_t5x's decoder, `network.DecoderConfig`.

  Sizes have transformers' names, the other settings those of the suite. Beside
  these: selection, the settings of selection or None; cache_budgets, a number
  of keys for each layer, or None for all keys.
  """

  model_type = 'selective_t5x_decoder'

  def __init__(
    self,
    vocab_size=32,
    max_position_embeddings=512,
    hidden_size=64,
    intermediate_size=192,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=64,
    mlp_activations=('silu', 'linear'),
    rotary=None,
    qk_norm=True,
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    rms_norm_eps=1e-6,
    norm_adds_one=False,
    embedding_scale=1.0,
    logits_scale=1.0,
    bos_id=0,
    selection=None,
    cache_budgets=None,
    **kwargs,
  ):
    """Stores the settings."""
    self.vocab_size = vocab_size
    self.max_position_embeddings = max_position_embeddings
    self.hidden_size = hidden_size
    self.intermediate_size = intermediate_size
    self.num_hidden_layers = num_hidden_layers
    self.num_attention_heads = num_attention_heads
    self.num_key_value_heads = num_key_value_heads
    self.head_dim = head_dim
    self.mlp_activations = list(mlp_activations)
    self.rotary = rotary
    self.qk_norm = qk_norm
    self.qkv_bias = qkv_bias
    self.out_bias = out_bias
    self.mlp_bias = mlp_bias
    self.rms_norm_eps = rms_norm_eps
    self.norm_adds_one = norm_adds_one
    self.embedding_scale = embedding_scale
    self.logits_scale = logits_scale
    self.bos_id = bos_id
    self.selection = selection
    self.cache_budgets = cache_budgets
    super().__init__(**kwargs)


class _Norm(nn.Module):
  """Root mean square normalisation, by scale or 1 + scale."""

  def __init__(self, size, config):
    super().__init__()
    self.weight = nn.Parameter(torch.zeros(size))
    self.epsilon, self.adds_one = config.rms_norm_eps, config.norm_adds_one

  def forward(self, x):
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.epsilon)
    scale = self.weight.float()
    return (y * (1 + scale if self.adds_one else scale)).to(x.dtype)


def _frequencies(rotary, size, device):
  """Returns radians a position, f32[D / 2]; see `network.Rotary`."""
  exponent = torch.arange(0, size, 2, dtype=torch.float32, device=device) / size
  plain = 1.0 / rotary['theta'] ** exponent
  if rotary['scaling'] == 'none':
    return plain
  lowered = plain / rotary['factor']
  if rotary['scaling'] == 'linear':
    return lowered
  waves = rotary['original_length'] * plain / (2 * math.pi)
  low, high = rotary['low_freq_factor'], rotary['high_freq_factor']
  share = ((waves - low) / (high - low)).clamp(0, 1)
  return (1 - share) * lowered + share * plain


def _rotate(x, positions, rotary):
  """Rotates [B, H, N, D] by i64[B, N]."""
  frequencies = _frequencies(rotary, x.shape[-1], x.device)
  angle = positions[:, None, :, None].float() * frequencies
  cos, sin = angle.cos(), angle.sin()
  first, second = x.float().chunk(2, dim=-1)
  rotated = [first * cos - second * sin, second * cos + first * sin]
  return torch.cat(rotated, dim=-1).to(x.dtype)


class _Attention(nn.Module):
  """Self-attention of the decoder."""

  def __init__(self, config, layer):
    super().__init__()
    self.config, self.layer = config, layer
    width, size = config.hidden_size, config.head_dim
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    self.q_proj = nn.Linear(width, heads * size, bias=config.qkv_bias)
    self.k_proj = nn.Linear(width, shared * size, bias=config.qkv_bias)
    self.v_proj = nn.Linear(width, shared * size, bias=config.qkv_bias)
    self.o_proj = nn.Linear(heads * size, width, bias=config.out_bias)
    if config.qk_norm:
      self.q_norm, self.k_norm = _Norm(size, config), _Norm(size, config)

  def forward(self, x, positions, cache, live):
    config = self.config
    query, key, value = (
      matrix(x).unflatten(-1, (-1, config.head_dim))
      for matrix in (self.q_proj, self.k_proj, self.v_proj)
    )
    if config.qk_norm:
      query, key = self.q_norm(query), self.k_norm(key)
    query, key, value = (y.transpose(1, 2) for y in (query, key, value))
    if config.rotary is not None:
      query = _rotate(query, positions, config.rotary)
      key = _rotate(key, positions, config.rotary)
    budgets = config.cache_budgets
    out = attend(
      query,
      key,
      value,
      scale=config.head_dim**-0.5,
      bias=None,
      selection=config.selection,
      cache=(budgets[self.layer] if budgets else None)
      if cache is None
      else cache.layers[self.layer],
      live=live,
    )
    return self.o_proj(out.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
  """The feed-forward block, of one factor or two."""

  def __init__(self, config):
    super().__init__()
    self.activations = config.mlp_activations
    sizes = config.hidden_size, config.intermediate_size
    if len(self.activations) > 1:
      self.gate_proj = nn.Linear(*sizes, bias=config.mlp_bias)
    self.up_proj = nn.Linear(*sizes, bias=config.mlp_bias)
    self.down_proj = nn.Linear(*sizes[::-1], bias=config.mlp_bias)

  def forward(self, x):
    *gate, last = (_ACTIVATIONS[name] for name in self.activations)
    y = last(self.up_proj(x))
    if gate:
      y = gate[0](self.gate_proj(x)) * y
    return self.down_proj(y)


class _Layer(nn.Module):
  """A layer of the decoder, pre-norm."""

  def __init__(self, config, layer):
    super().__init__()
    self.input_layernorm = _Norm(config.hidden_size, config)
    self.self_attn = _Attention(config, layer)
    self.post_attention_layernorm = _Norm(config.hidden_size, config)
    self.mlp = _FeedForward(config)

  def forward(self, x, positions, cache, live):
    x = x + self.self_attn(self.input_layernorm(x), positions, cache, live)
    return x + self.mlp(self.post_attention_layernorm(x))


class _Decoder(nn.Module):
  """The stack of layers, by Llama's names."""

  def __init__(self, config):
    super().__init__()
    self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
    if config.rotary is None:
      self.embed_positions = nn.Embedding(
        config.max_position_embeddings, config.hidden_size
      )
    self.layers = nn.ModuleList(
      _Layer(config, i) for i in range(config.num_hidden_layers)
    )
    self.norm = _Norm(config.hidden_size, config)


class SelectiveDecoderForCausalLM(
  transformers.PreTrainedModel, transformers.GenerationMixin
):
  """The paper's decoder, or a Llama, Qwen or Gemma that selects."""

  config_class = SelectiveDecoderConfig
  base_model_prefix = 'model'
  _tied_weights_keys = {'lm_head.weight': 'model.embed_tokens.weight'}

  def __init__(self, config):
    """Makes the layers."""
    super().__init__(config)
    self.model = _Decoder(config)
    self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
    self.post_init()

  @classmethod
  def _supports_default_dynamic_cache(cls):
    return False  # `forward` makes the cache.

  def get_input_embeddings(self):
    """Returns the embedding of tokens."""
    return self.model.embed_tokens

  def set_input_embeddings(self, value):
    """Replaces the embedding of tokens."""
    self.model.embed_tokens = value

  def forward(
    self,
    input_ids,
    attention_mask=None,
    past_key_values=None,
    use_cache=None,
    labels=None,
    logits_to_keep=0,
    **kwargs,
  ):
    """Returns the logits, and the cache with use_cache.

    Args:
      input_ids: i64[B, N], after the tokens in the cache.
      attention_mask: [B, tokens in the cache + N], 0 for padding, before or
        after the other tokens of a row; None for none.
      past_key_values: a SlotsCache, or None.
      use_cache: whether to make one.
      labels: i64[B, N], -100 where no loss is counted.
      logits_to_keep: how many of the last positions to return; 0 for all.
      **kwargs: not read.
    """
    config, model = self.config, self.model
    layers = config.num_hidden_layers
    if past_key_values is None and use_cache:
      past_key_values = SlotsCache(layers, config.cache_budgets)
    seen = 0 if past_key_values is None else past_key_values.get_seq_length()
    live = live_tokens(attention_mask, input_ids, seen)
    positions = live.long().cumsum(1)[:, seen:] - 1
    positions = positions.clamp(min=0)
    if config.bos_id:
      is_first = (positions == 0) & (input_ids == 0)
      input_ids = torch.where(is_first, config.bos_id, input_ids)
    x = model.embed_tokens(input_ids) * config.embedding_scale
    if config.rotary is None:
      x = x + model.embed_positions(positions)
    for layer in model.layers:
      x = layer(x, positions, past_key_values, live)
    x = model.norm(x)[:, -logits_to_keep:]
    logits = self.lm_head(x).float() * config.logits_scale
    loss = None
    if labels is not None:
      loss = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
      )
    return modeling_outputs.CausalLMOutputWithPast(
      loss=loss, logits=logits, past_key_values=past_key_values
    )
