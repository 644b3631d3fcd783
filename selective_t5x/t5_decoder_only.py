"""T5's decoder as a language model, as in T5X's examples/decoder_only.

The names, shapes, logical axes and initial values of the parameters are T5X's,
so its checkpoints fit. Without selection the logits equal T5X's to the same
extent as in t5_network.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from selective_t5x.nn import decoder, t5_settings, t5x_modules
from selective_t5x.nn.call import Call
from selective_t5x.nn.extensions import Extension
from selective_t5x.pruning import Pruning


@dataclasses.dataclass(frozen=True)
class DecoderOnlyConfig(t5_settings.StackConfig):
  """Settings by T5X's names; gin/architectures/t5_decoder_only.gin binds them.

  Attributes:
    num_layers: layers of the decoder.
  """

  num_layers: int = 6

  @property
  def decoder_layers(self) -> int:
    """L, the layers of the decoder."""
    return self.num_layers


class DecoderOnly(nn.Module):
  """The decoder, which T5X's DecoderOnlyModel calls."""

  config: DecoderOnlyConfig

  def setup(self):
    """Makes the decoder; all parameters are under `decoder`."""
    self.decoder = decoder.Decoder(self.config)

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
    """Predicts each target token, like `network.Decoder`.

    Arguments, result and errors are the same, but decoder_positions are not
    read, as biases depend on distances. So no row is too long.
    """
    del decoder_positions, max_decode_length
    return self.decoder(
      decoder_input_tokens.astype(jnp.int32),
      decoder_target_tokens,
      Call(
        t5_settings.segments(decoder_target_tokens, decoder_segment_ids),
        deterministic=not enable_dropout,
        memory_tau=memory_tau,
        live_keys=live_keys,
        prefix=decoder_causal_attention,
      ),
      decode=decode,
      prefill=prefill,
      prefill_lengths=prefill_lengths,
      budgets=budgets,
    )


def from_t5x(
  module: nn.Module,
  attention_fn: Callable[..., Any],
  pruning: Pruning | None = None,
  attention_extension: Callable[..., Extension] | None = None,
) -> nn.Module:
  """Returns T5X's decoder-only network with another attention.

  Gin: gin/t5x/decoder_only.gin. Like `t5_network.from_t5x`, for the
  DecoderWrapper of T5X's examples/decoder_only.
  """
  return t5x_modules.with_attention(
    module,
    DecoderOnly,
    DecoderOnlyConfig,
    of_t5x=t5x_modules.DECODERS,
    attention_fn=attention_fn,
    pruning=pruning,
    attention_extension=attention_extension,
  )
