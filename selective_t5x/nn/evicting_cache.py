"""The decoding cache that has room for a budget of keys, and evicts the others.

T5X's protocol and the place of tokens are those of `cache`; but a layer's cache
is made with as many slots as its budget, whatever the length of the rows. No
array of a step is longer.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from selective_t5x.attention import capabilities, checks, masks, steps
from selective_t5x.attention.selection import spread
from selective_t5x.nn.cache import Place, partitioned, row_of
from selective_t5x.pruning import eviction
from selective_t5x.pruning.policy import Policy
from selective_t5x.pruning.whole_rows import pruned_attention


class EvictingCache(nn.Module):
  """Attends with the keys and values that are left, and keeps the new ones.

  Leaves, K slots each: cached_key and cached_value [B, K, H, D];
  cached_key_position i32[B, K], the original positions; where the attention
  selects, cached_masking f32[B, K], the next query's row of F, or f32[B, K, G]
  where G > 1 heads select, whose mean the policy goes by; where the policy
  accumulates, cached_score f32[B, K]; where there is an extension, also
  cached_<name> [B, K, ...] of what it keeps. Slots fill from 0, so the
  decoder's position tells which are in use: all before it.

  Attributes:
    attention_fn: `attention.causal_attention`, `attention.selective_attention`
      or a function with their arguments for steps, to which slots are given in
      place of positions: see `pruning.eviction`.
    policy: which key goes.
    budget: K; a cache for shorter rows has a slot for each token.
    layer: the layer's number, from 0.
  """

  attention_fn: Callable[..., Any]
  policy: Policy
  budget: int
  layer: int

  @nn.compact
  def __call__(
    self,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    place: Place,
    *,
    bias_fn: Callable[..., jax.Array] | None = None,
    kept: Mapping[str, Any] | None = None,
    **settings,
  ) -> jax.Array:
    """Attends causally, as `cache.KeyValueCache` with all keys.

    The arguments are the same, but for bias_fn, which gives the bias for (N,
    None) of whole rows, and for (i32[B, K], i32[B]), the positions of keys and
    queries, of steps.
    """
    tokens = {'key': key, 'value': value, **(kept or {})}
    batch, length = key.shape[:2]
    size = min(self.budget, length)
    dtype = jnp.promote_types(key.dtype, jnp.float32)

    def leaf(name, dtype, *entry):
      return self.variable(
        'cache', name, jnp.zeros, (batch, size, *entry), dtype
      )

    leaves = {
      name: leaf(f'cached_{name}', x.dtype, *x.shape[2:])
      for name, x in tokens.items()
    }
    leaves['position'] = leaf('cached_key_position', jnp.int32)
    if self.policy.accumulates:
      leaves['score'] = leaf('cached_score', dtype)
    if place.position is not None:
      if capabilities.of(self.attention_fn).masking:
        leaves['masking'] = leaf('cached_masking', dtype)
      return self._step(
        leaves, query, tokens, place.position, bias_fn, settings
      )

    pruned = pruned_attention(
      self.attention_fn,
      self.policy,
      query,
      key,
      value,
      budget=self.budget,
      layer=self.layer,
      bias=None if bias_fn is None else bias_fn(length, None),
      **settings,
      **(kept or {}),
    )
    if pruned.masking is not None:
      groups = pruned.masking.shape[1:-2]
      leaves['masking'] = leaf('cached_masking', dtype, *groups)
    if place.lengths is not None:
      self._fill(leaves, tokens, pruned, place.lengths)
    return pruned.out

  def _step(self, leaves, query, tokens, position, bias_fn, settings):
    """Makes room for one token a row, keeps it, attends; [B, 1, H, D]."""
    held = {name: leaf.value for name, leaf in leaves.items()}
    if bias_fn is not None:
      bias_fn = functools.partial(bias_fn, position=position)
    logits = None
    if self.policy.reads_logits:
      logits = _logits(query, tokens['key'], held, position, bias_fn, settings)
    slot, scores = eviction.admit(
      self.policy,
      position,
      held['position'],
      layer=self.layer,
      scores=held.get('score'),
      masking=_mean(held.get('masking')),
      logits=logits,
    )
    new = {name: x[:, 0] for name, x in tokens.items()}
    new['position'] = position
    if 'score' in held:
      held['score'], new['score'] = scores[:, :-1], scores[:, -1]
    if 'masking' in held:
      new['masking'] = jnp.zeros_like(held['masking'][:, 0])
    last = eviction.last_slot(position, held['position'].shape[1])
    for name, x in held.items():
      held[name] = partitioned(name, eviction.put(x, new[name], slot, last))
    if bias_fn is not None:
      settings['bias'] = bias_fn(held['position'])
    if 'masking' in held:
      settings['masking'] = _swap_groups(held['masking'])
    settings |= {name: held[name] for name in tokens}
    out = self.attention_fn(query, position=last, **settings)
    if 'masking' in held:
      out, masking = out
      held['masking'] = _swap_groups(masking)
    for name, x in held.items():
      leaves[name].value = x
    return out

  def _fill(self, leaves, tokens, pruned, lengths):
    """Keeps what the last query of each prompt, lengths - 1, leaves."""
    batch, length = tokens['key'].shape[:2]
    size = leaves['position'].value.shape[1]
    if length < size:
      raise ValueError(
        f'prompts of {length} tokens and a cache of {size}: expected at least '
        'as many'
      )
    last = jnp.maximum(lengths - 1, 0)
    entries = {
      **tokens,
      'position': jnp.broadcast_to(jnp.arange(length), (batch, length)),
    }
    if pruned.masking is not None:
      # The row of F that the next token reads. A full row has no next token.
      following = jnp.minimum(lengths, length - 1)
      entries['masking'] = _swap_groups(row_of(pruned.masking, following))
    if pruned.scores is not None:
      entries['score'] = row_of(pruned.scores, last)
    index = eviction.gather_kept(row_of(pruned.kept, last), size)
    filled = jnp.arange(size) < lengths[:, None]
    rows = jnp.arange(index.shape[0])[:, None]
    for name, x in entries.items():
      left = masks.zero_padding(x[rows, index], filled)
      leaves[name].value = partitioned(name, left)


def _swap_groups(masking):
  """Exchanges [B, K, G] and [B, G, K], where there is a G."""
  return masking if masking.ndim == 2 else masking.swapaxes(1, 2)


def _mean(masking):
  """Returns f32[B, K], the mean over the G; None for None."""
  if masking is None or masking.ndim == 2:
    return masking
  return jnp.mean(masking, axis=2)


def _logits(query, key, held, position, bias_fn, settings):
  """Returns f32[B, H, K + 1], of the slots and the own key, F subtracted."""
  scale = checks.scale('EvictingCache', settings.get('scale'), query)
  logits = jnp.concatenate(
    [steps.query_logits(query, of, scale, None) for of in (held['key'], key)],
    axis=-1,
  )
  if bias_fn is not None:
    logits += bias_fn(
      jnp.concatenate([held['position'], position[:, None]], axis=1)
    )
  logits = logits[:, :, 0]
  if 'masking' in held:
    masking = held['masking']
    masking = masking.reshape(*masking.shape[:2], -1).swapaxes(1, 2)
    masking = spread(masking, logits.shape[1])
    logits -= jnp.pad(masking, ((0, 0), (0, 0), (0, 1)))
  return logits
