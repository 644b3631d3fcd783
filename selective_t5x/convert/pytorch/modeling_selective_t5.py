"""T5 for transformers with the selective decoder of selective_t5x.

Source: Leviathan, Kalman, Matias, "Selective Attention Improves Transformer",
arXiv 2410.02703. `python -m selective_t5x.convert` puts this file beside the
tensors that it exports; `from_pretrained(..., trust_remote_code=True)` runs it.
"""

import copy

import torch
import transformers
from transformers import cache_utils, modeling_outputs
from transformers.models.t5 import modeling_t5

from .selective_attention import SlotsCache, attend, live_tokens


class SelectiveT5Config(transformers.T5Config):
  """T5's configuration, with selection and cache_budgets of the decoder."""

  model_type = 'selective_t5x_t5'

  def __init__(self, selection=None, cache_budgets=None, **kwargs):
    """Stores the settings."""
    self.selection, self.cache_budgets = selection, cache_budgets
    super().__init__(**kwargs)


class _T5Decoder(modeling_t5.T5Stack):
  """T5's decoder, whose self-attention selects and evicts."""

  def _bias(self, query_positions, positions):
    """Returns T5's biases of distances, f32[B, H, Q, S]."""
    first = self.block[0].layer[0].SelfAttention
    distance = positions[:, None] - query_positions[:, :, None]
    buckets = first._relative_position_bucket(
      distance,
      bidirectional=False,
      num_buckets=first.relative_attention_num_buckets,
      max_distance=first.relative_attention_max_distance,
    )
    return first.relative_attention_bias(buckets).permute(0, 3, 1, 2).float()

  def forward(
    self,
    input_ids=None,
    attention_mask=None,
    encoder_hidden_states=None,
    encoder_attention_mask=None,
    inputs_embeds=None,
    past_key_values=None,
    **kwargs,
  ):
    """As T5Stack's, without its options."""
    x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
    cache = seen = None
    if past_key_values is not None:
      cache = past_key_values.self_attention_cache
      seen = cache.get_seq_length()
    live = live_tokens(attention_mask, x, seen or 0)
    mask = None
    if encoder_attention_mask is not None:
      mask = (1 - encoder_attention_mask[:, None, None].to(x.dtype)) * (
        torch.finfo(x.dtype).min
      )
    budgets = self.config.cache_budgets
    x = self.dropout(x)
    for i, block in enumerate(self.block):
      of_self, across, feed_forward = block.layer
      attention = of_self.SelfAttention
      y = of_self.layer_norm(x)
      out = attend(
        *(
          matrix(y).unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)
          for matrix in (attention.q, attention.k, attention.v)
        ),
        scale=1.0,
        bias=self._bias,
        selection=self.config.selection,
        cache=(budgets[i] if budgets else None)
        if cache is None
        else cache.layers[i],
        live=live,
      )
      y = attention.o(out.transpose(1, 2).flatten(2))
      x = x + of_self.dropout(y)
      x, *_ = across(
        x,
        key_value_states=encoder_hidden_states,
        attention_mask=mask,
        past_key_values=past_key_values,
      )
      x = feed_forward(x)
    x = self.dropout(self.final_layer_norm(x))
    return modeling_outputs.BaseModelOutputWithPastAndCrossAttentions(
      last_hidden_state=x, past_key_values=past_key_values
    )


class SelectiveT5ForConditionalGeneration(
  modeling_t5.T5ForConditionalGeneration
):
  """T5 with a selective decoder and an evicting cache."""

  config_class = SelectiveT5Config

  def __init__(self, config):
    """Makes T5, with another decoder."""
    super().__init__(config)
    decoder_config = copy.deepcopy(config)
    decoder_config.is_decoder = True
    decoder_config.num_layers = config.num_decoder_layers
    self.decoder = _T5Decoder(decoder_config)
    self.post_init()

  @classmethod
  def _supports_default_dynamic_cache(cls):
    return False  # `forward` makes the cache.

  def forward(self, *args, past_key_values=None, use_cache=None, **kwargs):
    """As T5ForConditionalGeneration's."""
    if past_key_values is None and use_cache:
      config = self.config
      past_key_values = cache_utils.EncoderDecoderCache(
        SlotsCache(config.num_decoder_layers, config.cache_budgets),
        cache_utils.DynamicCache(),
      )
    return super().forward(
      *args, past_key_values=past_key_values, use_cache=use_cache, **kwargs
    )
