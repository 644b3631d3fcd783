"""Models small enough to check by hand, with T5X's protocol of a module.

A token's logits come from the sum of the embeddings up to it, in its segment;
an encoder adds the sum of the inputs. The cache is that sum and a count.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

WIDTH = 8
VOCAB_SIZE = 16


def sums(vectors, segment_ids, positions=None):
  """Sums f32[B, N, WIDTH] along the row, each segment for itself."""
  if positions is not None:
    vectors *= 1.0 + 0.1 * positions[..., None]
  same = segment_ids[:, :, None] == segment_ids[:, None, :]
  return jnp.einsum('bij,bjd->bid', jnp.tril(same.astype(float)), vectors)


class RunningSum(nn.Module):
  """Called as T5X's DecoderOnlyModel does."""

  @nn.compact
  def __call__(
    self,
    decoder_input_tokens,
    decoder_target_tokens,
    decoder_segment_ids=None,
    decoder_positions=None,
    decoder_causal_attention=None,
    *,
    enable_dropout=True,
    decode=False,
    max_decode_length=None,
    prefill=False,
    prefill_lengths=None,
    context=0.0,
  ):
    del enable_dropout, max_decode_length
    tokens = decoder_input_tokens.astype(jnp.int32)
    batch, length = tokens.shape
    vectors = nn.Embed(VOCAB_SIZE, WIDTH)(tokens)
    if decode or prefill:
      cached = self.variable('cache', 'sum', jnp.zeros, (batch, WIDTH))
      index = self.variable('cache', 'cache_index', jnp.zeros, (), jnp.int32)
    if prefill:
      # The last token of the prompt is read again.
      kept = jnp.arange(length) < prefill_lengths[:, None]
      cached.value = jnp.sum(vectors * kept[..., None], axis=1)
      index.value = prefill_lengths
    if decode and length == 1:
      cached.value += vectors[:, 0]
      index.value += 1
      hidden = cached.value[:, None]
    else:
      if decoder_segment_ids is None:
        decoder_segment_ids = jnp.ones_like(tokens)
      hidden = sums(vectors, decoder_segment_ids, decoder_positions)
    if decoder_causal_attention is not None:
      hidden += decoder_causal_attention[..., None]
    self.sow('intermediates', 'hidden', hidden)
    return nn.Dense(VOCAB_SIZE, name='output')(jnp.sin(hidden + context))


class EncoderDecoder(nn.Module):
  """Called as T5X's EncoderDecoderModel does."""

  def setup(self):
    self.embed = nn.Embed(VOCAB_SIZE, WIDTH)
    self.decoder = RunningSum()

  def encode(self, encoder_input_tokens, *, enable_dropout=True):
    del enable_dropout
    tokens = encoder_input_tokens.astype(jnp.int32)
    return self.embed(tokens) * (tokens != 0)[..., None]

  def decode(
    self,
    encoded,
    encoder_input_tokens,
    decoder_input_tokens,
    decoder_target_tokens,
    *,
    decoder_segment_ids=None,
    decoder_positions=None,
    prefill=False,
    prefill_lengths=None,
    **kwargs,
  ):
    real = (encoder_input_tokens != 0)[..., None]
    return self.decoder(
      decoder_input_tokens,
      decoder_target_tokens,
      decoder_segment_ids,
      decoder_positions,
      context=jnp.sum(encoded * real, axis=1, keepdims=True),
      prefill=prefill,
      prefill_lengths=prefill_lengths,
      **kwargs,
    )

  def __call__(
    self,
    encoder_input_tokens,
    decoder_input_tokens,
    decoder_target_tokens,
    *,
    encoder_segment_ids=None,
    decoder_segment_ids=None,
    encoder_positions=None,
    decoder_positions=None,
    **kwargs,
  ):
    del encoder_positions
    encoded = self.encode(encoder_input_tokens)
    if encoder_segment_ids is None:
      return self.decode(
        encoded,
        encoder_input_tokens,
        decoder_input_tokens,
        decoder_target_tokens,
        decoder_segment_ids=decoder_segment_ids,
        decoder_positions=decoder_positions,
        **kwargs,
      )
    # Each target sees the inputs of its segment.
    same = decoder_segment_ids[:, :, None] == encoder_segment_ids[:, None, :]
    return self.decoder(
      decoder_input_tokens,
      decoder_target_tokens,
      decoder_segment_ids,
      decoder_positions,
      context=jnp.einsum('bij,bjd->bid', same.astype(float), encoded),
      **kwargs,
    )


def argmax_chain(logits_of, prompt, length, eos_id):
  """Writes the likeliest token, one by one.

  Args:
    logits_of: maps input tokens i32[1, length] to logits f32[1, length, V].
    prompt: list of tokens that come first.
    length: of the result.
    eos_id: the last token that is written.
  """
  tokens = list(prompt)
  while len(tokens) < length:
    row = np.zeros((1, length), np.int32)
    row[0, 1 : len(tokens) + 1] = tokens
    logits = np.asarray(logits_of(row))[0, len(tokens)]
    tokens.append(int(np.argmax(logits)))
    if tokens[-1] == eos_id:
      break
  return tokens + [0] * (length - len(tokens))
