"""The pruned KV cache whose heads keep keys of their own, in one pool.

T5X's protocol and the place of tokens are those of `cache`; what is evicted
those of `pruning.pool`. Plain attention alone can use it.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from selective_t5x.attention import checks, masks
from selective_t5x.nn import t5_layers
from selective_t5x.nn.cache import Place, partitioned
from selective_t5x.pruning import pool
from selective_t5x.pruning.policy import Policy
from selective_t5x.pruning.query_blocks import pruned_rows


class PooledCache(nn.Module):
  """Attends with the cached keys and values, evicts, and caches the new ones.

  Leaves, E = H * K entries each: cached_key and cached_value [B, E, D];
  cached_key_position and cached_key_head i32[B, E], the original position and
  the head; cached_score f32[B, E, ...] if the policy accumulates. Entries fill
  from 0, H at a time.

  Attributes:
    attention_fn: `attention.causal_attention`, for whole rows.
    policy: decides which entries are evicted.
    budget: K; a cache for shorter rows has one entry per token and head.
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
    """Attends causally; the arguments are those of `EvictingCache`.

    Raises:
      ValueError: if an extension keeps arrays of its own, or prompts are
        shorter than the cache.
    """
    if kept:
      raise ValueError(
        f'a pool of keys holds no arrays of an extension, got {list(kept)}'
      )
    batch, length, heads, size = key.shape
    slots = heads * min(self.budget, length)
    dtype = jnp.promote_types(key.dtype, jnp.float32)

    def leaf(name, dtype, *entry):
      return self.variable(
        'cache', f'cached_{name}', jnp.zeros, (batch, slots, *entry), dtype
      )

    leaves = {
      'key': leaf('key', key.dtype, size),
      'value': leaf('value', value.dtype, size),
      'position': leaf('key_position', jnp.int32),
      'head': leaf('key_head', jnp.int32),
    }
    if self.policy.accumulates:
      leaves['score'] = leaf('score', dtype, *self.policy.score_shape)
    if place.position is not None:
      return self._step(
        leaves, query, key, value, place.position, bias_fn, settings
      )
    last = None
    if place.lengths is not None:
      last = jnp.maximum(place.lengths - 1, 0)
    pruned = pruned_rows(
      self.attention_fn,
      self.policy,
      query,
      key,
      value,
      budget=self.budget,
      layer=self.layer,
      bias=t5_layers.bias_of_rows(bias_fn, None, length),
      last=last,
      **settings,
    )
    if place.lengths is not None:
      self._fill(leaves, key, value, pruned, place.lengths)
    return pruned.out

  def _step(self, leaves, query, key, value, position, bias_fn, settings):
    """Evicts H entries, caches one token a row, and attends; [B, 1, H, D]."""
    cached = {name: leaf.value for name, leaf in leaves.items()}
    batch, slots = cached['position'].shape
    heads = query.shape[2]
    scale = checks.scale('PooledCache', settings.get('scale'), query)
    new = {
      'key': key[:, 0],
      'value': value[:, 0],
      'position': jnp.broadcast_to(position[:, None], (batch, heads)),
      'head': jnp.broadcast_to(jnp.arange(heads), (batch, heads)),
    }
    if 'score' in cached:
      new['score'] = jnp.zeros_like(cached['score'][:, :heads])
    both = {
      name: jnp.concatenate([x, new[name]], axis=1)
      for name, x in cached.items()
      if name != 'value'
    }
    logits = _logits(query[:, 0], both, position, bias_fn, scale)
    filled = jnp.arange(slots) < heads * position[:, None]
    kept, scores = pool.step(
      self.policy,
      pool.Entries(
        held=jnp.pad(filled, ((0, 0), (0, heads)), constant_values=True),
        heads=both['head'],
        positions=both['position'],
        position=position,
        scores=both.get('score', logits),
        logits=logits,
        budget=slots // heads,
        num_heads=heads,
      ),
    )
    index = pool.places(kept[:, :slots], position, heads)
    if 'score' in cached:
      cached['score'] = scores[:, :slots]
      new['score'] = scores[:, slots:]
    rows = jnp.arange(batch)[:, None]

    def put(x, own):
      return x.at[rows, index].set(own)

    for name, x in cached.items():
      cached[name] = _partitioned(name, put(x, new[name]))
      leaves[name].value = cached[name]
    weights = pool.softmax(
      put(logits[:, :slots], logits[:, slots:]),
      cached['head'],
      put(filled, True),
      heads,
    )
    # An empty entry is finite, since a cache starts with zeros.
    out = jnp.einsum('bhe,bed->bhd', weights, cached['value'])
    return out[:, None].astype(value.dtype)

  def _fill(self, leaves, key, value, pruned, lengths):
    """Caches the entries that each prompt's last query, lengths - 1, keeps."""
    batch, length, heads, size = key.shape
    slots = leaves['position'].value.shape[1]
    if heads * length < slots:
      raise ValueError(
        f'prompts of {length} tokens and a cache of {slots // heads}: expected '
        'at least as many'
      )
    # [B, H, N] to [B, N * H].
    kept = pruned.kept
    kept = kept.swapaxes(1, 2).reshape(batch, -1)
    index = jnp.argsort(~kept, axis=1, stable=True)[:, :slots]
    filled = jnp.arange(slots) < heads * lengths[:, None]
    rows = jnp.arange(batch)[:, None]
    entries = {
      'key': key.reshape(batch, -1, size)[rows, index],
      'value': value.reshape(batch, -1, size)[rows, index],
      'position': index // heads,
      'head': index % heads,
    }
    if pruned.scores is not None:
      entries['score'] = pruned.scores[rows, index]
    for name, x in entries.items():
      leaves[name].value = _partitioned(name, masks.zero_padding(x, filled))


def _partitioned(name, x):
  """Splits a leaf's rows over the mesh; a pool mixes the heads."""
  return partitioned(f'pool_{name}', x)


def _logits(query, entries, position, bias_fn, scale):
  """Returns the logits of each entry's own head, f32[B, E].

  Args:
    query: [B, H, D].
    entries: 'key' [B, E, D], 'head' and 'position' i32[B, E].
    position: i32[B], the query's.
    bias_fn: as in `EvictingCache`.
    scale: multiplies the products.
  """
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  heads = query.shape[1]
  own = jax.nn.one_hot(entries['head'], heads, axis=1, dtype=bool)
  logits = scale * jnp.einsum(
    'bhd,bed->bhe', query.astype(dtype), entries['key'].astype(dtype)
  )
  if bias_fn is not None:
    logits += functools.partial(bias_fn, position=position)(
      entries['position']
    )[:, :, 0]
  return jnp.sum(jnp.where(own, logits, 0), axis=1)
