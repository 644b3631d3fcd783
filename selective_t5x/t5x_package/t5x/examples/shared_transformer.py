"""What the encoder-decoders of T5X's examples share: `decode` as T5X has it."""

import jax

from selective_t5x import t5_network


class Transformer(t5_network.Transformer):
  """An encoder-decoder that reads the prompts of its outputs step by step.

  `t5_network.Transformer` prefills its cache with them, which T5X's examples
  cannot: by that, beam search counts the steps in another way.
  """

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
    **measures,
  ) -> jax.Array:
    """Does what `t5_network.Transformer.decode` does, without prefilling."""
    return super().decode(
      encoded,
      encoder_input_tokens,
      decoder_input_tokens,
      decoder_target_tokens,
      encoder_segment_ids,
      decoder_segment_ids,
      decoder_positions,
      enable_dropout,
      decode,
      max_decode_length,
      **measures,
    )
