"""The pruned KV cache, which holds a budget of keys and evicts the others.

T5X's protocol and the place of tokens are those of `cache`. But a layer's cache
has as many slots as its budget, whatever the length of the rows. No array of a
step is longer.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from selective_t5x.attention import (
  capabilities,
  checks,
  grouped,
  masks,
  steps,
)
from selective_t5x.attention.selection import spread
from selective_t5x.nn import t5_layers
from selective_t5x.nn.cache import Place, partitioned
from selective_t5x.pruning import eviction
from selective_t5x.pruning.policy import Policy, View
from selective_t5x.pruning.query_blocks import pruned_rows
from selective_t5x.pruning.whole_rows import tokens_of


class EvictingCache(nn.Module):
  """Attends with the cached keys and values, evicts, and caches the new ones.

  Leaves, K slots each: cached_key and cached_value [B, K, R, D], R heads of
  keys as in `cache.KeyValueCache`; cached_key_position i32[B, K], the original
  positions; if the attention selects, cached_masking f32[B, K], the next
  query's row of F, or f32[B, K, G] where G > 1 heads select, whose mean the
  policy reads; if the policy accumulates, cached_score f32[B, K, ...]; if it
  sums over a row's queries, cached_<name> [B, ...] for each total; with an
  extension, cached_<name> [B, K, ...] for each array that it keeps. Slots fill
  from 0, so the slots before the decoder's position are in use. With a policy
  that drops keys early, cached_held bool[B, K] says which are in use, and the
  latest key is always in the last one. A policy that certifies sows what it may
  have lost, f32[B, N, H] (N is 1 in a step), as `certificate` in
  'intermediates'.

  Attributes:
    attention_fn: `attention.causal_attention`, `attention.selective_attention`
      or a function with their arguments for steps. It gets slots in place of
      positions: see `pruning.eviction`.
    policy: decides which key is evicted.
    budget: K; a cache for shorter rows has one slot per token.
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
    """Attends causally, like `cache.KeyValueCache` with all keys.

    The arguments are the same except for bias_fn. It gives the bias for (N,
    None) with whole rows, and for (i32[B, K], i32[B]), the positions of keys
    and queries, in steps.
    """
    tokens = {'key': key, 'value': value, **(kept or {})}
    batch, length, heads, head_size = *key.shape[:2], *query.shape[2:]
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
      leaves['score'] = leaf('cached_score', dtype, *self.policy.score_shape)
    if self.policy.drops_early:
      leaves['held'] = leaf('cached_held', bool)
    totals = {
      name: self.variable('cache', f'cached_{name}', jnp.zeros_like, x)
      for name, x in self.policy.new_totals(
        batch, heads, head_size, dtype
      ).items()
    }
    if place.position is not None:
      if capabilities.of(self.attention_fn).masking:
        leaves['masking'] = leaf('cached_masking', dtype)
      return self._step(
        leaves, totals, query, tokens, place.position, bias_fn, settings
      )

    pruned = pruned_rows(
      self.attention_fn,
      self.policy,
      query,
      grouped.repeat(key, query.shape[2]),
      grouped.repeat(value, query.shape[2]),
      budget=self.budget,
      layer=self.layer,
      bias=t5_layers.bias_of_rows(bias_fn, None, length),
      last=None if place.lengths is None else jnp.maximum(place.lengths - 1, 0),
      bias_limit=bias_limit(self.policy, bias_fn),
      **settings,
      **(kept or {}),
    )
    if self.policy.certifies:
      self.sow('intermediates', 'certificate', pruned.certificate)
    if pruned.masking is not None:
      groups = pruned.masking.shape[1:-1]
      leaves['masking'] = leaf('cached_masking', dtype, *groups)
    if place.lengths is not None:
      self._fill(leaves, tokens, pruned, place.lengths)
      for name, x in pruned.totals.items():
        totals[name].value = x
    return pruned.out

  def _step(self, leaves, totals, query, tokens, position, bias_fn, settings):
    """Evicts a key, caches one token a row, and attends; [B, 1, H, D]."""
    cached = {name: leaf.value for name, leaf in leaves.items()}
    limit = bias_limit(self.policy, bias_fn)
    if bias_fn is not None:
      bias_fn = functools.partial(bias_fn, position=position)
    late = self.policy.evicts_unseen
    logits = None
    if self.policy.reads_logits and not late:
      keys = (cached['key'], tokens['key'])
      logits = _logits(query, keys, cached, position, bias_fn, settings)
    slot, step = eviction.admit(
      self.policy,
      position,
      cached['position'],
      layer=self.layer,
      scores=cached.get('score'),
      masking=_mean(cached.get('masking')),
      logits=logits,
      tokens=self._seen(query, tokens, cached, limit, settings),
      totals={name: leaf.value for name, leaf in totals.items()},
      held=cached.get('held'),
    )
    for name, x in step.totals.items():
      totals[name].value = x
    if self.policy.certifies:
      self.sow(
        'intermediates', 'certificate', step.totals['certificate'][:, None]
      )
    new = {name: x[:, 0] for name, x in tokens.items()}
    new['position'] = position
    if 'score' in cached:
      cached['score'], new['score'] = step.scores[:, :-1], step.scores[:, -1]
    if 'masking' in cached:
      new['masking'] = jnp.zeros_like(cached['masking'][:, 0])
    slots = cached['position'].shape[1]
    last = eviction.last_slot(position, slots)
    if 'held' in cached:
      cached['held'], new['held'] = step.kept[:, :-1], step.kept[:, -1]
      last = jnp.full_like(last, slots - 1)
    for name, x in cached.items():
      cached[name] = partitioned(name, eviction.put(x, new[name], slot, last))
    if late:
      cached['score'] = self._accumulated(
        query, cached, position, last, bias_fn, settings
      )
    if bias_fn is not None:
      settings['bias'] = bias_fn(cached['position'])
    if 'held' in cached:
      settings['bias'] = _without_holes(settings.get('bias'), cached['held'])
    if 'masking' in cached:
      settings['masking'] = _swap_groups(cached['masking'])
    settings |= {name: cached[name] for name in tokens}
    for name in ('key', 'value'):
      settings[name] = grouped.repeat(settings[name], query.shape[2])
    out = self.attention_fn(query, position=last, **settings)
    if 'masking' in cached:
      out, masking = out
      cached['masking'] = _swap_groups(masking)
    for name, x in cached.items():
      leaves[name].value = x
    return out

  def _accumulated(self, query, cached, position, last, bias_fn, settings):
    """Returns the scores after this query, whose key is cached already."""
    slots = cached['position'].shape[1]
    held = jnp.arange(slots) <= last[:, None]
    view = View(
      held=held,
      positions=cached['position'],
      position=position,
      scores=cached['score'],
      budget=slots,
      layer=self.layer,
      logits=_logits(query, (cached['key'],), cached, None, bias_fn, settings),
    )
    return self.policy.accumulate(view, held)

  def _seen(self, query, tokens, cached, limit, settings):
    """Returns what a policy that reads keys sees, K + 1 keys; else None."""
    if not self.policy.reads_keys:
      return None
    key, value = (
      grouped.repeat(
        jnp.concatenate([cached[name], tokens[name]], axis=1), query.shape[2]
      )
      for name in ('key', 'value')
    )
    scale = checks.scale('EvictingCache', settings.get('scale'), query)
    return tokens_of(query[:, 0], key, value, scale, limit)

  def _fill(self, leaves, tokens, pruned, lengths):
    """Caches the keys that each prompt's last query, lengths - 1, keeps."""
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
      entries['masking'] = _swap_groups(pruned.masking)
    if pruned.scores is not None:
      entries['score'] = pruned.scores
    kept = pruned.kept
    index = eviction.gather_kept(kept, size)
    filled = jnp.arange(size) < lengths[:, None]
    if 'held' in leaves:
      # The latest key goes to the last slot, the others fill the first ones.
      others = jnp.sum(kept, axis=1, keepdims=True) - 1
      filled &= (jnp.arange(size) < others) | (jnp.arange(size) == size - 1)
      index = index.at[:, -1].set(last)
      filled = filled.at[:, -1].set(lengths > 0)
      entries['held'] = jnp.ones((batch, length), bool)
    rows = jnp.arange(index.shape[0])[:, None]
    for name, x in entries.items():
      contents = masks.zero_padding(x[rows, index], filled)
      leaves[name].value = partitioned(name, contents)


def bias_limit(policy, bias_fn):
  """Returns what no bias exceeds, f32[1, H]; None if nothing reads it."""
  if bias_fn is None or not policy.certifies:
    return None
  return bias_fn.largest()


def _without_holes(bias, held):
  """Returns the bias with the least number for empty slots."""
  dtype = jnp.float32 if bias is None else bias.dtype
  least = jnp.where(held, 0, jnp.finfo(dtype).min / 2).astype(dtype)
  least = least[:, None, None]
  return least if bias is None else bias + least


def _swap_groups(masking):
  """Swaps [B, K, G] and [B, G, K], if there is a G."""
  return masking if masking.ndim == 2 else masking.swapaxes(1, 2)


def _mean(masking):
  """Returns the mean over the G, f32[B, K]; None for None."""
  if masking is None or masking.ndim == 2:
    return masking
  return jnp.mean(masking, axis=2)


def _logits(query, keys, cached, position, bias_fn, settings):
  """Returns the logits less F, f32[B, H, K + 1], or K with position None.

  Args:
    query: [B, 1, H, D].
    keys: those of the slots, and the query's own unless it is in a slot.
    cached: the entries of the slots.
    position: i32[B], that of the query's own key; None if it is in a slot.
    bias_fn: as in `_step`.
    settings: arguments of the attention function.
  """
  scale = checks.scale('EvictingCache', settings.get('scale'), query)
  parts = [
    steps.query_logits(query, grouped.repeat(x, query.shape[2]), scale, None)
    for x in keys
  ]
  logits = parts[0] if position is None else jnp.concatenate(parts, axis=-1)
  if bias_fn is not None:
    positions = cached['position']
    if position is not None:
      positions = jnp.concatenate([positions, position[:, None]], axis=1)
    logits += bias_fn(positions)
  logits = logits[:, :, 0]
  if 'masking' in cached:
    masking = cached['masking']
    masking = masking.reshape(*masking.shape[:2], -1).swapaxes(1, 2)
    masking = spread(masking, logits.shape[1])
    own = 0 if position is None else 1
    logits -= jnp.pad(masking, ((0, 0), (0, 0), (0, own)))
  return logits
