"""The full KV cache of a causal decoder, which keeps all keys and values.

It follows T5X's protocol for the collection 'cache': one apply with decode=True
on [B, N] tokens makes an empty cache of N slots; one with prefill=True enters
whole prompts at once; every further apply with decode=True takes one token a
row, [B, 1]. Rows are independent: each has its own position.

Shapes are static. Every leaf is finite and has the batch as its first axis,
since T5X's decoding copies and gathers rows of it for beams. T5X does not
gather leaves named cache_index, cached_bias and position_embedder_index, so
these names do not occur here.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning

from selective_t5x.attention import capabilities, grouped, masks
from selective_t5x.nn import layers, t5_layers


class Place(NamedTuple):
  """The place in the KV cache of a decoder's current tokens.

  Attributes:
    position: i32[B], the slot of each row's token in a step; None for whole
      rows, which start at slot 0.
    lengths: i32[B], how many tokens of each prompt enter the cache; None in a
      step, and when an empty cache is made.
  """

  position: jax.Array | None = None
  lengths: jax.Array | None = None


def place(
  module: nn.Module,
  tokens: jax.Array,
  *,
  decode: bool,
  prefill: bool | None = False,
  prefill_lengths: jax.Array | None = None,
) -> Place | None:
  """Returns the place of tokens in the cache, and advances the rows' counter.

  Args:
    module: the decoder, inside its compact call; it keeps the counter,
      `cached_position`, i32[B].
    tokens: i32[B, N], or i32[B, 1] in a step.
    decode: as in T5X: makes the cache or, if it exists, takes a step.
    prefill: as in T5X: fills the cache with prompts.
    prefill_lengths: i32[B], the tokens of each prompt; not None with prefill.

  Returns:
    The place, or None without decode and prefill.

  Raises:
    ValueError: if both are true, or the tokens do not fit the cache.
  """
  if not decode and not prefill:
    return None
  if decode and prefill:
    raise ValueError('decode and prefill cannot both be set: prefill first')
  exists = module.has_variable('cache', 'cached_position')
  counter = module.variable(
    'cache', 'cached_position', jnp.zeros, tokens.shape[:1], jnp.int32
  )
  if prefill:
    counter.value = prefill_lengths.astype(jnp.int32)
    return Place(lengths=counter.value)
  if not exists:
    return Place()
  expected = (counter.value.shape[0], 1)
  if tokens.shape != expected:
    raise ValueError(
      f'a step of decoding takes one token for each row of the cache, '
      f'{list(expected)}, got {list(tokens.shape)}'
    )
  position = counter.value
  counter.value = position + 1
  return Place(position=position)


def partitioned(name: str, x: jax.Array) -> jax.Array:
  """Splits a leaf over the device mesh like activations.

  Args:
    name: the leaf's name, `key`, `value` or another.
    x: [B, N, H, D] for these two, else [B, N, ...].

  Returns:
    x, whose rows are split over 'data', and whose heads over 'model'.
  """
  axes: tuple[str | None, ...] = ('batch', 'length')
  if name in ('key', 'value'):
    axes += (layers.heads_axis(x.shape[2]), 'kv')
  return partitioning.with_sharding_constraint(
    x, axes + (None,) * (x.ndim - len(axes))
  )


class KeyValueCache(nn.Module):
  """Attends with the keys and values of earlier tokens, and caches new ones.

  Leaves: cached_key and cached_value [B, N, R, D], R heads of keys, which is H
  unless the queries are grouped (`attention.grouped`); if the attention
  function selects, also cached_masking, the masking by earlier tokens,
  f32[B, N], or f32[B, G, N] where G > 1 heads select; with an extension, also
  cached_<name> [B, N, ...] for each array that it keeps.

  Attributes:
    attention_fn: `attention.causal_attention`, `attention.selective_attention`
      or a function with their arguments for steps.
  """

  attention_fn: Callable[..., Any]

  @nn.compact
  def __call__(
    self,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    place: Place,
    *,
    bias_fn: Callable[..., jax.Array] | None = None,
    kept: Mapping[str, jax.Array] | None = None,
    **settings,
  ) -> jax.Array:
    """Attends causally; there is no padding while a model decodes.

    Args:
      query: [B, N, H, D], or [B, 1, H, D] in a step.
      key: [B, N, R, D], or [B, 1, R, D] in a step.
      value: as key.
      place: the place of these tokens.
      bias_fn: gives the bias for (N, position), or (N, None) for whole rows.
      kept: arrays of these tokens, [B, N, ...], see `extensions.Extended`.
      **settings: arguments of the attention function.

    Returns:
      As query.
    """
    kept = kept or {}
    heads = query.shape[2]

    def repeated(*xs):
      return (grouped.repeat(x, heads) for x in xs)

    selects = capabilities.of(self.attention_fn).masking
    tokens = {'key': key, 'value': value, **kept}
    leaves = {
      name: self.variable('cache', f'cached_{name}', jnp.zeros_like, x)
      for name, x in tokens.items()
    }
    slots = leaves['key'].value.shape[1]
    if bias_fn is not None:
      settings['bias'] = (
        t5_layers.bias_of_rows(bias_fn, self.attention_fn, slots)
        if place.position is None
        else bias_fn(slots, place.position)
      )

    def attend(**more):
      return self.attention_fn(
        query, *repeated(key, value), **kept, **(settings | more)
      )

    def nothing_masked():
      """Makes an empty row of F; the attention function knows its shape."""
      first = jnp.zeros(key.shape[:1], jnp.int32)
      _, row = jax.eval_shape(lambda: attend(masking_row=first))
      return jnp.zeros((*row.shape[:-1], slots), row.dtype)

    if selects:
      masking = self.variable('cache', 'cached_masking', nothing_masked)

    if place.position is not None:
      # Updated in place in the decoding loop; a finished row writes nothing.
      slot = jnp.arange(key.shape[0]), place.position
      for name, x in tokens.items():
        entries = leaves[name].value.at[slot].set(x[:, 0])
        leaves[name].value = partitioned(name, entries)
      if selects:
        settings['masking'] = masking.value
      keys, values, *cached = (leaf.value for leaf in leaves.values())
      out = self.attention_fn(
        query,
        *repeated(keys, values),
        position=place.position,
        **dict(zip(kept, cached, strict=True)),
        **settings,
      )
      if selects:
        out, masking.value = out
      return out

    if place.lengths is None:
      return attend()

    if key.shape != leaves['key'].value.shape:
      raise ValueError(
        f'prompts of {key.shape[1]} tokens and a cache of {slots}: they must '
        'have one length'
      )
    filled = jnp.arange(slots) < place.lengths[:, None]
    for name, x in tokens.items():
      leaves[name].value = partitioned(name, masks.zero_padding(x, filled))
    if not selects:
      return attend()
    # The row of F that the next token reads. A full row has no next token.
    following = jnp.minimum(place.lengths, slots - 1)
    out, masking.value = attend(masking_row=following)
    return out
