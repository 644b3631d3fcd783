"""Attention masks and biases by T5X's names; most are Flax's."""

import functools
import operator

import jax
import jax.numpy as jnp
from flax import linen as nn

# Their arguments and values are the same.
from flax.linen import make_attention_mask, make_causal_mask

__all__ = (
  'combine_biases',
  'combine_masks',
  'make_attention_mask',
  'make_causal_mask',
  'make_decoder_mask',
)


def combine_masks(
  *masks: jax.Array | None, dtype=jnp.float32
) -> jax.Array | None:
  """Returns the conjunction of masks, of which some may be None."""
  return nn.combine_masks(*masks, dtype=dtype)


def combine_biases(*masks: jax.Array | None) -> jax.Array | None:
  """Returns the sum of biases of one rank, of which some may be None."""
  biases = [bias for bias in masks if bias is not None]
  assert len({bias.ndim for bias in biases}) <= 1, 'biases of different ranks'
  return functools.reduce(operator.add, biases) if biases else None


def make_decoder_mask(
  decoder_target_tokens: jax.Array,
  dtype,
  decoder_causal_attention: jax.Array | None = None,
  decoder_segment_ids: jax.Array | None = None,
) -> jax.Array:
  """Returns the mask of a decoder's self-attention, [B, 1, N, N].

  A query sees the tokens up to its own that are no padding and lie in its
  segment, and the whole prefix if it lies in it itself.

  Args:
    decoder_target_tokens: i32[B, N], 0 is padding.
    dtype: the mask's dtype.
    decoder_causal_attention: i32[B, N], 1 in the prefix of a prefix LM.
    decoder_segment_ids: i32[B, N], the segments of packed examples.
  """
  tokens = decoder_target_tokens
  seen = make_causal_mask(tokens, dtype=bool)
  if decoder_causal_attention is not None:
    prefix = decoder_causal_attention
    seen |= make_attention_mask(prefix, prefix, jnp.logical_and, dtype=bool)
  masks = [seen, make_attention_mask(tokens > 0, tokens > 0, dtype=bool)]
  if decoder_segment_ids is not None:
    segments = decoder_segment_ids
    masks.append(make_attention_mask(segments, segments, jnp.equal, dtype=bool))
  return combine_masks(*masks, dtype=dtype)
