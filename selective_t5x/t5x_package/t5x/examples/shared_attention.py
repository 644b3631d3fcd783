"""Multi-head attention of T5X's examples with its KV cache, for users.

Shapes: B batch, N queries, K keys, M model width, H heads, D head size.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning

from t5x.examples import shared_layers, shared_masks
from t5x.examples.shared_layers import Array, DType, Initializer, PRNGKey

_ATTENTION_INIT = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
# What a masked logit gets added, as in T5X.
_MASKED = -1e10


def dot_product_attention(
  query: Array,
  key: Array,
  value: Array,
  bias: Array | None = None,
  dropout_rng: PRNGKey | None = None,
  dropout_rate: float = 0.0,
  deterministic: bool = False,
  dtype: DType = jnp.float32,
  float32_logits: bool = False,
) -> Array:
  """Returns softmax(query key^T + bias) value; the logits are not scaled.

  Args:
    query: [B, N, H, D].
    key: [B, K, H, D].
    value: [B, K, H, E].
    bias: added to the logits; broadcasts to [B, H, N, K].
    dropout_rng: the key of dropout.
    dropout_rate: the rate of attention weights; one mask for all queries.
    deterministic: whether dropout is off.
    dtype: the dtype of the weights.
    float32_logits: whether the logits are computed in float32.

  Returns:
    [B, N, H, E].
  """
  if float32_logits:
    query, key = query.astype(jnp.float32), key.astype(jnp.float32)
  logits = jnp.einsum('bqhd,bkhd->bhqk', query, key)
  if bias is not None:
    logits = logits + bias.astype(logits.dtype)
  weights = jax.nn.softmax(logits).astype(dtype)
  if not deterministic and dropout_rate > 0.0:
    mask = jax.random.bernoulli(
      dropout_rng, 1.0 - dropout_rate, (*weights.shape[:-2], 1, key.shape[1])
    )
    weights = (
      weights * mask.astype(dtype) / jnp.asarray(1.0 - dropout_rate, dtype)
    )
  return jnp.einsum('bhqk,bkhd->bqhd', weights, value)


class MultiHeadDotProductAttention(nn.Module):
  """Multi-head attention with a KV cache for steps of decoding.

  Leaves of the cache: cached_key and cached_value [B, H, D, N], cache_index, a
  scalar, or i32[B] after a prefill.

  Attributes:
    num_heads: H.
    head_dim: D.
    dtype: the computation's dtype.
    dropout_rate: the rate of the attention weights.
    kernel_init: gives the initial kernels; a query's is divided by D ** 0.5.
    float32_logits: whether the logits are computed in float32.
  """

  num_heads: int
  head_dim: int
  dtype: DType = jnp.float32
  dropout_rate: float = 0.0
  kernel_init: Initializer = _ATTENTION_INIT
  float32_logits: bool = False

  dense_cls = shared_layers.DenseGeneral
  heads_axes = ('joined_kv',)

  @nn.compact
  def __call__(
    self,
    inputs_q: Array,
    inputs_kv: Array,
    mask: Array | None = None,
    bias: Array | None = None,
    *,
    decode: bool = False,
    deterministic: bool = False,
    prefill: bool = False,
    prefill_lengths: Array | None = None,
  ) -> Array:
    """Attends from inputs_q to inputs_kv.

    Args:
      inputs_q: [B, N, M].
      inputs_kv: [B, K, M].
      mask: where it is 0 a query does not see a key; broadcasts to
        [B, H, N, K].
      bias: added to the logits; broadcasts to [B, H, N, K]. In a step, that of
        the whole row.
      decode: the first call makes an empty cache, each further one is a step
        with one token a row, [B, 1, M].
      deterministic: whether dropout is off.
      prefill: whether to enter whole prompts into an existing cache.
      prefill_lengths: i32[B], tokens of each prompt; None: as many as the
        mask's first query sees.

    Returns:
      [B, N, M].

    Raises:
      ValueError: decode and prefill are both set, or a step has not one token
        a row.
    """
    if decode and prefill:
      raise ValueError('decode and prefill cannot both be set: prefill first')
    heads = functools.partial(
      self.dense_cls,
      features=(self.num_heads, self.head_dim),
      kernel_axes=('embed', *self.heads_axes),
      dtype=self.dtype,
    )

    def query_init(*args):
      return self.kernel_init(*args) / jnp.sqrt(self.head_dim).astype(
        self.dtype
      )

    query = heads(kernel_init=query_init, name='query')(inputs_q)
    key = heads(kernel_init=self.kernel_init, name='key')(inputs_kv)
    value = heads(kernel_init=self.kernel_init, name='value')(inputs_kv)
    query, key, value = (
      partitioning.with_sharding_constraint(
        x, ('batch', 'length', 'heads', 'kv')
      )
      for x in (query, key, value)
    )
    if decode or prefill:
      lengths = prefill_lengths
      if prefill and lengths is None:
        lengths = jnp.sum(mask[:, 0, 0, :], axis=-1).astype(jnp.int32)
      key, value, position = self._cached(query, key, value, decode, lengths)
      if position is not None:
        mask, bias = _of_step(mask, bias, position, key.shape[1])
    logits_bias = None
    if mask is not None:
      logits_bias = jnp.where(mask > 0, 0.0, _MASKED).astype(self.dtype)
    drops = not deterministic and self.dropout_rate > 0.0
    out = dot_product_attention(
      query,
      key,
      value,
      shared_masks.combine_biases(logits_bias, bias),
      self.make_rng('dropout') if drops else None,
      self.dropout_rate,
      deterministic,
      self.dtype,
      self.float32_logits,
    )
    return self.dense_cls(
      features=inputs_q.shape[-1],
      axis=(-2, -1),
      kernel_init=self.kernel_init,
      kernel_axes=(*self.heads_axes, 'embed'),
      dtype=self.dtype,
      name='out',
    )(out)

  def _cached(self, query, key, value, decode, lengths):
    """Enters keys and values into the cache.

    Returns:
      (keys, values, position): those to attend to, and i32[1] or i32[B], the
      place of a step's tokens; None in whole rows.
    """
    exists = self.has_variable('cache', 'cached_key')
    leaves = [
      self.variable(
        'cache', name, jnp.zeros, jnp.moveaxis(x, -3, -1).shape, x.dtype
      )
      for name, x in (('cached_key', key), ('cached_value', value))
    ]
    index = self.variable('cache', 'cache_index', jnp.zeros, (), jnp.int32)
    if not exists:
      return key, value, None
    # The methods return the new values, since Flax tracks variables that are
    # set here alone.
    if not decode:
      key, value, _, *new = self.update_cache_prefill(
        key, value, *leaves, index, lengths
      )
      position = None
    else:
      batch, heads, size, _ = leaves[0].value.shape
      if query.shape != (batch, 1, heads, size):
        raise ValueError(
          f'a step of decoding takes one token for each row of the cache: '
          f'expected queries of shape {(batch, 1, heads, size)}, got '
          f'{query.shape}'
        )
      key, value, position, *new = self.update_cache_decode(
        key, value, *leaves, index
      )
    for variable, x in zip((*leaves, index), new, strict=True):
      variable.value = x
    return key, value, position

  def update_cache_prefill(
    self,
    key: Array,
    value: Array,
    cached_key: nn.Variable,
    cached_value: nn.Variable,
    cache_index: nn.Variable,
    prefill_lengths: Array,
  ) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Enters whole prompts into the cache; a subclass may override it.

    Args:
      key: [B, K, H, D].
      value: [B, K, H, D].
      cached_key: holds [B, H, D, K].
      cached_value: holds [B, H, D, K].
      cache_index: not read.
      prefill_lengths: i32[B], tokens of each prompt.

    Returns:
      (keys and values to attend to, prefill_lengths, the new values of
      cached_key, cached_value and cache_index).
    """
    del cache_index, cached_value
    # What lies after a prompt is zero: steps add to the cache.
    slots = jnp.arange(cached_key.value.shape[-1])
    entered = (slots < prefill_lengths[:, None])[:, None, None]
    new = [
      jnp.moveaxis(x, -3, -1) * entered.astype(x.dtype) for x in (key, value)
    ]
    return key, value, prefill_lengths, *new, prefill_lengths

  def update_cache_decode(
    self,
    key: Array,
    value: Array,
    cached_key: nn.Variable,
    cached_value: nn.Variable,
    cache_index: nn.Variable,
  ) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Enters one token of each row into the cache; a subclass may override it.

    Args:
      key: [B, 1, H, D].
      value: [B, 1, H, D].
      cached_key: holds [B, H, D, K].
      cached_value: holds [B, H, D, K].
      cache_index: holds the place of the tokens, a scalar or i32[B].

    Returns:
      (keys and values to attend to [B, K, H, D], the place i32[1] or i32[B],
      the new values of cached_key, cached_value and cache_index).
    """
    position = jnp.reshape(cache_index.value, (-1,))
    slots = jnp.arange(cached_key.value.shape[-1])
    entered = (slots == position[:, None])[:, None, None]
    new = [
      leaf.value + jnp.moveaxis(x, -3, -1) * entered.astype(x.dtype)
      for leaf, x in ((cached_key, key), (cached_value, value))
    ]
    rows = (jnp.moveaxis(x, -1, -3) for x in new)
    return *rows, position, *new, cache_index.value + 1


def _of_step(mask, bias, position, slots: int):
  """Returns the mask and the bias of one query at its position."""
  seen = jnp.arange(slots) <= position[:, None]
  mask = shared_masks.combine_masks(mask, seen[:, None, None])
  if bias is not None:
    # A product with one-hot rows shards better than a gather.
    row = jax.nn.one_hot(position, slots, dtype=bias.dtype)
    bias = jnp.einsum(
      'bq,bhqk->bhk',
      row,
      jnp.broadcast_to(bias, (row.shape[0], *bias.shape[1:])),
    )[:, :, None]
  return mask, bias
