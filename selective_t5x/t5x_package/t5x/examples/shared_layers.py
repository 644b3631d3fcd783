"""The Flax layers that T5X's examples share, for networks of users.

Shapes: B batch, N length, M model width, H heads, D head size. Parameters and
cache leaves have T5X's names, shapes, logical axes and initial values. The
networks of this package use `selective_t5x.nn` instead, whose attention can be
replaced.
"""

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen import partitioning

from selective_t5x.nn import t5_layers

Array = jax.Array
DType = Any
PRNGKey = jax.Array
Shape = Sequence[int]
Activation = Callable[..., Array]
Initializer = Callable[..., Array]

default_embed_init = nn.initializers.variance_scaling(
  1.0, 'fan_in', 'normal', out_axis=0
)
_KERNEL_INIT = nn.initializers.variance_scaling(
  1.0, 'fan_in', 'truncated_normal'
)


def _tuple(x: Iterable[int] | int) -> tuple[int, ...]:
  return tuple(x) if isinstance(x, Iterable) else (x,)


class DenseGeneral(nn.Module):
  """A matrix product without bias over several axes; the kernel has two.

  Attributes:
    features: the sizes of the new axes.
    axis: the axes of the input that are summed over.
    dtype: the product's dtype.
    kernel_init: gives the initial kernel, [in, out].
    kernel_axes: the logical names of the kernel's axes.
  """

  features: Iterable[int] | int
  axis: Iterable[int] | int = -1
  dtype: DType = jnp.float32
  kernel_init: Initializer = _KERNEL_INIT
  kernel_axes: tuple[str, ...] = ()

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Maps [..., *in] to [..., *features]."""
    features, axes = _tuple(self.features), _tuple(self.axis)
    inputs = jnp.asarray(inputs, self.dtype)
    shape = tuple(inputs.shape[axis] for axis in axes) + features
    kernel = self.kernel(shape, len(axes)).astype(self.dtype).reshape(shape)
    return jnp.tensordot(inputs, kernel, (axes, tuple(range(len(axes)))))

  def kernel(self, shape: Sequence[int], summed: int) -> Array:
    """Returns the kernel, whose input and output axes are joined.

    Args:
      shape: the sizes of all its axes.
      summed: how many of them are of the input.
    """
    joined = int(np.prod(shape[:summed])), int(np.prod(shape[summed:]))
    return partitioning.param_with_axes(
      'kernel', self.kernel_init, joined, jnp.float32, axes=self.kernel_axes
    )


class MlpBlock(nn.Module):
  """The feed-forward block: the product of activations, then a projection.

  Attributes:
    intermediate_dim: the hidden size.
    activations: for each factor 'linear', a name in flax.linen or a function.
    kernel_init: gives the initial kernels.
    intermediate_dropout_rate: the rate of hidden activations, one mask for all
      positions.
    dtype: the computation's dtype.
  """

  intermediate_dim: int = 2048
  activations: Sequence[str | Callable[[Array], Array]] = ('relu',)
  kernel_init: Initializer = _KERNEL_INIT
  intermediate_dropout_rate: float = 0.1
  dtype: DType = jnp.float32

  dense_cls = DenseGeneral

  @nn.compact
  def __call__(
    self, inputs: Array, decode: bool = False, deterministic: bool = False
  ) -> Array:
    """Maps [B, N, M] to [B, N, M]; `decode` changes nothing."""
    dense = functools.partial(
      self.dense_cls, dtype=self.dtype, kernel_init=self.kernel_init
    )
    alone = len(self.activations) == 1
    factors = [
      _activation(activation)(
        dense(
          self.intermediate_dim,
          kernel_axes=('embed', 'mlp'),
          name='wi' if alone else f'wi_{i}',
        )(inputs)
      )
      for i, activation in enumerate(self.activations)
    ]
    x = functools.reduce(operator.mul, factors)
    x = nn.Dropout(self.intermediate_dropout_rate, broadcast_dims=(-2,))(
      x, deterministic=deterministic
    )
    x = partitioning.with_sharding_constraint(x, ('batch', 'length', 'mlp'))
    return dense(inputs.shape[-1], kernel_axes=('mlp', 'embed'), name='wo')(x)


def _activation(activation: str | Callable[[Array], Array]):
  """Returns the function of an activation.

  Raises:
    ValueError: it is neither a name nor a function.
  """
  if activation == 'linear':
    return lambda x: x
  if isinstance(activation, str):
    return getattr(nn, activation)
  if not callable(activation):
    raise ValueError(
      f'an activation is {activation!r}: expected a name or a function'
    )
  return activation


class Embed(nn.Module):
  """A table of learned vectors.

  Attributes:
    num_embeddings: rows of the table.
    features: M, the size of a vector.
    cast_input_dtype: ids are cast to it first; None: they are not.
    dtype: the output's dtype.
    attend_dtype: the table's dtype in `attend`; None: `dtype`.
    embedding_init: gives the initial table.
    one_hot: whether a row is taken by a product and not by a gather.
  """

  num_embeddings: int
  features: int
  cast_input_dtype: DType | None = None
  dtype: DType = jnp.float32
  attend_dtype: DType | None = None
  embedding_init: Initializer = default_embed_init
  one_hot: bool = False

  def setup(self):
    """Makes the table for both methods."""
    self.embedding = partitioning.param_with_axes(
      'embedding',
      self.embedding_init,
      (self.num_embeddings, self.features),
      jnp.float32,
      axes=('vocab', 'embed'),
    )

  def __call__(self, inputs: Array) -> Array:
    """Maps integers [...] to [..., M].

    Raises:
      ValueError: the ids are no integers.
    """
    if self.cast_input_dtype:
      inputs = inputs.astype(self.cast_input_dtype)
    if not jnp.issubdtype(inputs.dtype, jnp.integer):
      raise ValueError(f'ids of dtype {inputs.dtype}: expected integers')
    table = self.embedding.astype(self.dtype)
    if self.one_hot:
      return jax.nn.one_hot(inputs, self.num_embeddings, dtype=table.dtype) @ (
        table
      )
    return partitioning.with_sharding_constraint(
      table[inputs], ('batch', 'length', 'embed')
    )

  def attend(self, query: Array) -> Array:
    """Maps [..., M] to the products with every row, [..., rows]."""
    return query @ self.embedding.astype(self.attend_dtype or self.dtype).T


class RelativePositionBiases(nn.Module):
  """T5's learned biases of attention logits by the distance of key and query.

  Attributes:
    num_buckets: how many biases a head has; distances share them.
    max_distance: longer distances share the last bucket.
    num_heads: H.
    dtype: the biases' dtype.
    embedding_init: gives the initial table.
  """

  num_buckets: int
  max_distance: int
  num_heads: int
  dtype: DType
  embedding_init: Initializer = nn.linear.default_embed_init

  @staticmethod
  def _relative_position_bucket(
    relative_position, bidirectional=True, num_buckets=32, max_distance=128
  ):
    """Returns the buckets of distances, see `t5_layers.distance_buckets`."""
    return t5_layers.distance_buckets(
      relative_position,
      both_ways=bidirectional,
      num_buckets=num_buckets,
      max_distance=max_distance,
    )

  @nn.compact
  def __call__(
    self,
    qlen: int,
    klen: int,
    bidirectional: bool = True,
    decode: bool = False,
  ) -> Array:
    """Returns the biases of rows of queries and keys, [1, H, qlen, klen].

    Args:
      qlen: number of queries.
      klen: number of keys.
      bidirectional: whether keys may be ahead of queries.
      decode: whether the biases of the first call go into the cache, as
        `cached_bias`, and further calls return them.

    Raises:
      ValueError: decode with bidirectional biases, in `init`, or for other
        lengths than the cache has.
    """
    if decode and bidirectional:
      raise ValueError('decode=True needs bidirectional=False')
    if decode and not self.has_variable('params', 'rel_embedding'):
      raise ValueError('decode=True in init: expected the parameters first')
    if decode and self.has_variable('cache', 'cached_bias'):
      cached = self.get_variable('cache', 'cached_bias')
      expected = (1, self.num_heads, qlen, klen)
      if cached.shape != expected:
        raise ValueError(
          f'the cached bias has the shape {cached.shape}: expected {expected}'
        )
      return cached
    buckets = self._relative_position_bucket(
      np.arange(klen) - np.arange(qlen)[:, None],
      bidirectional,
      self.num_buckets,
      self.max_distance,
    )
    table = partitioning.param_with_axes(
      'rel_embedding',
      self.embedding_init,
      (self.num_heads, self.num_buckets),
      jnp.float32,
      axes=('heads', 'relpos_buckets'),
    )
    # A product: a gather and its gradient are slow on a TPU.
    one_hot = buckets == np.arange(self.num_buckets)[:, None, None]
    biases = jnp.einsum(
      'hk,kij->hij', table.astype(self.dtype), one_hot.astype(self.dtype)
    )[None]
    if decode:
      self.variable('cache', 'cached_bias', lambda: biases)
    return biases


class LayerNorm(nn.Module):
  """Root mean square normalisation over the last axis, with a learned scale.

  Source: arXiv 1910.07467.

  Attributes:
    epsilon: keeps a row of zeros finite.
    dtype: the output's dtype; statistics are float32.
    scale_init: gives the initial scale.
  """

  epsilon: float = 1e-6
  dtype: DType = jnp.float32
  scale_init: Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Maps [..., M] to [..., M]."""
    x = jnp.asarray(x, jnp.float32)
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    scale = partitioning.param_with_axes(
      'scale', self.scale_init, x.shape[-1:], jnp.float32, axes=('embed',)
    )
    x = (x * jax.lax.rsqrt(mean_square + self.epsilon)).astype(self.dtype)
    return x * scale.astype(self.dtype)
