"""T5's decoder alone, as a language model: T5X's examples/decoder_only.

The names, shapes, logical axes and initial values of the parameters are T5X's,
so that its checkpoints fit; with selection off the logits are T5X's too, as far
as t5_network's are.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from selective_t5x.nn import decoder, t5_settings
from selective_t5x.nn.call import Call


@dataclasses.dataclass(frozen=True)
class DecoderOnlyConfig(t5_settings.StackConfig):
  """Settings by T5X's names; gin/architectures/t5_decoder_only.gin binds them.

  Attributes:
    num_layers: layers of the decoder.
  """

  num_layers: int = 6

  @property
  def decoder_layers(self) -> int:
    """L."""
    return self.num_layers


class DecoderOnly(nn.Module):
  """The decoder, called as T5X's DecoderOnlyModel does."""

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
    budgets: jax.Array | None = None,
  ) -> jax.Array:
    """Predicts each target token, as `network.Decoder` does.

    The arguments, the result and the errors are the same, but for
    decoder_positions, which are not needed: biases go by distance. So no row is
    too long.
    """
    del decoder_positions, max_decode_length
    return self.decoder(
      decoder_input_tokens.astype(jnp.int32),
      decoder_target_tokens,
      Call(
        t5_settings.segments(decoder_target_tokens, decoder_segment_ids),
        deterministic=not enable_dropout,
        memory_tau=memory_tau,
        prefix=decoder_causal_attention,
      ),
      decode=decode,
      prefill=prefill,
      prefill_lengths=prefill_lengths,
      budgets=budgets,
    )
