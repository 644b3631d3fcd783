"""Flax layers of T5: relative position biases, bidirectional attention.

Shapes: B batch, N length, M model width, H heads, D head size. Names, shapes,
logical axes and initial values of parameters are those of T5X's examples/t5.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen import partitioning

from selective_t5x import attention
from selective_t5x.attention import capabilities
from selective_t5x.attention.distance_bias import DistanceBias
from selective_t5x.nn import layers

NUM_BUCKETS = 32
MAX_DISTANCE = 128

# T5 does not scale its logits. Its initial query kernels are smaller instead,
# which is equivalent under Adafactor. Source: arXiv 1910.10683's code.
KERNEL_INIT = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')


def query_init(head_dim: int) -> Callable[..., jax.Array]:
  """Returns the initialiser of query kernels, the keys' over D ** 0.5."""
  return nn.initializers.variance_scaling(1 / head_dim, 'fan_in', 'normal')


def distance_buckets(
  distance: np.ndarray,
  *,
  both_ways: bool,
  num_buckets: int = NUM_BUCKETS,
  max_distance: int = MAX_DISTANCE,
) -> np.ndarray:
  """Sorts distances into the buckets that share a learned bias.

  Each short distance has its own bucket. Then buckets widen logarithmically up
  to max_distance; all longer distances share the last one. Source: arXiv
  1910.10683, section 2.1.

  Args:
    distance: i64[...], position of the key minus position of the query.
    both_ways: whether keys may be ahead of queries. They then have half of the
      buckets; else they share the bucket of distance 0.
    num_buckets: the number of buckets.
    max_distance: the first distance that is in the last bucket.

  Returns:
    i64[...], from 0 to num_buckets - 1.
  """
  ahead = distance > 0
  buckets = num_buckets // 2 if both_ways else num_buckets
  back = np.abs(distance) if both_ways else np.maximum(-distance, 0)
  exact = buckets // 2
  # In float32 as in T5X; otherwise a distance at a border could move.
  ratio = np.maximum(back, 1).astype(np.float32) / exact
  steps = np.log(ratio + np.finfo(np.float32).eps) / math.log(
    max_distance / exact
  )
  wide = exact + (steps * (buckets - exact)).astype(np.int64)
  bucket = np.where(back < exact, back, np.minimum(wide, buckets - 1))
  return bucket + buckets * ahead if both_ways else bucket


class RelativeBias(nn.Module):
  """Learned biases of attention logits by the distance of key and query.

  Attributes:
    num_heads: H.
    both_ways: whether keys may be ahead of queries, as in an encoder.
    dtype: the biases' dtype.
  """

  num_heads: int
  both_ways: bool
  dtype: Any = jnp.float32

  def setup(self):
    """Makes the table of biases, H by bucket."""
    self.table = partitioning.param_with_axes(
      'rel_embedding',
      nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform'),
      (self.num_heads, NUM_BUCKETS),
      jnp.float32,
      axes=('heads', 'relpos_buckets'),
    )

  def __call__(
    self, keys: int | jax.Array, position: jax.Array | None = None
  ) -> jax.Array:
    """Returns the biases of a row of N keys.

    Args:
      keys: N, for keys at positions 0 to N - 1; or the keys' positions,
        i32[B, N], only with `position`.
      position: i32[B], the single query of each row; None for a query at each
        of the N positions.

    Returns:
      [1, H, N, N], axis 2 the query, or [B, H, 1, N] with position.
    """
    positions: Any = np.arange(keys) if isinstance(keys, int) else keys
    buckets: Any
    if position is None:
      distance = positions - positions[:, None]
      buckets = distance_buckets(distance, both_ways=self.both_ways)[None]
    else:
      # A constant table of all distances up to the maximum.
      bucket_table = distance_buckets(
        np.arange(-MAX_DISTANCE, MAX_DISTANCE + 1), both_ways=self.both_ways
      )
      distance = jnp.clip(
        positions - position[:, None], -MAX_DISTANCE, MAX_DISTANCE
      )
      buckets = jnp.asarray(bucket_table)[distance + MAX_DISTANCE][:, None]
    # A product as in T5X: a gather and its gradient are slow on a TPU.
    one_hot = buckets[:, None] == np.arange(NUM_BUCKETS)[:, None, None]
    return jnp.einsum(
      'hk,bkij->bhij', self.table.astype(self.dtype), one_hot.astype(self.dtype)
    )

  def by_distance(self) -> DistanceBias:
    """Returns the biases of whole rows by distance, without N x N of them."""
    ahead = MAX_DISTANCE if self.both_ways else 0
    buckets = distance_buckets(
      np.arange(-MAX_DISTANCE, ahead + 1), both_ways=self.both_ways
    )
    return DistanceBias(self.table[:, buckets].astype(self.dtype), ahead)

  def largest(self) -> jax.Array:
    """Returns the largest bias of each head at any distance, [1, H]."""
    return jnp.max(self.table.astype(self.dtype), axis=1)[None]


def bias_of_rows(
  bias_fn: Callable[..., jax.Array] | None,
  attention_fn: Callable[..., Any] | None,
  length: int,
) -> jax.Array | DistanceBias | None:
  """Returns the biases of whole rows as an attention function takes them.

  Args:
    bias_fn: a RelativeBias, or a function with its arguments; None for none.
    attention_fn: the attention function; None for pruned attention, which takes
      biases by distance whatever its attention function is.
    length: N.

  Returns:
    A DistanceBias where `attention_fn` declares that it takes one and `bias_fn`
    has one; else [1, H, N, N]. None without bias_fn.
  """
  if bias_fn is None:
    return None
  by_distance = getattr(bias_fn, 'by_distance', None)
  if by_distance and (
    attention_fn is None or capabilities.of(attention_fn).distance_bias
  ):
    return by_distance()
  return bias_fn(length, None)


class Attention(nn.Module):
  """Bidirectional multi-head attention, for encoders and cross-attention.

  Attributes:
    num_heads: H.
    head_dim: D.
    attention_fn: `attention.full_attention` or a function with its arguments.
    dropout_rate: the rate of the attention weights.
    dtype: the computation's dtype.
    split_kernels: as in SelfAttention.
    scale: the factor of the logits.
  """

  num_heads: int
  head_dim: int
  attention_fn: Callable[..., jax.Array] = attention.full_attention
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  split_kernels: bool = False
  scale: float = 1.0

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    y: jax.Array,
    query_ids: jax.Array,
    key_ids: jax.Array,
    *,
    deterministic: bool,
    bias: jax.Array | DistanceBias | None = None,
  ) -> jax.Array:
    """Attends from each token of x to the tokens of its segment in y.

    Args:
      x: [B, N, M].
      y: [B, K, M].
      query_ids: i32[B, N], segments of x, 0 for padding.
      key_ids: i32[B, K], segments of y, 0 for padding.
      deterministic: whether dropout is off.
      bias: added to the logits; broadcasts to [B, H, N, K], or a DistanceBias
        where the attention function takes one.

    Returns:
      [B, N, M], zero in padding rows.
    """

    def heads(name, inputs, init=KERNEL_INIT):
      return layers.project_heads(
        inputs,
        self.num_heads,
        self.head_dim,
        name=name,
        dtype=self.dtype,
        kernel_init=init,
        split=self.split_kernels,
      )

    out = self.attention_fn(
      heads('query', x, query_init(self.head_dim)),
      heads('key', y),
      layers.drop_keys(
        heads('value', y), self.dropout_rate, deterministic=deterministic
      ),
      scale=self.scale,
      bias=bias,
      query_ids=query_ids,
      key_ids=key_ids,
    )
    return layers.join_heads(
      out,
      x.shape[-1],
      dtype=self.dtype,
      kernel_init=KERNEL_INIT,
      split=self.split_kernels,
    )
