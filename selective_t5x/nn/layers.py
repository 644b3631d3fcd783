"""Flax layers of the paper's decoder and of T5.

Shapes: B batch, N length, M model width, H heads, D head size. Parameters are
float32 and carry T5X's logical axis names, so that a partitioner can shard
them; activations are in `dtype`.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning

from selective_t5x.attention import mesh

# Kernels: variance 1 / fan-in keeps activations at unit size at every width.
KERNEL_INIT = nn.initializers.variance_scaling(
  1.0, 'fan_in', 'truncated_normal'
)
# T5X's choice for tokens, which starts the residual stream at unit size.
TOKEN_INIT = nn.initializers.normal(stddev=1.0)
# Positions start at zero. Larger ones would hide what selection says of near
# and far from the first step on (every later token adds to F). Measured on
# variable assignment (24 assignments, 2 layers, width 64, AdamW 0.001): entries
# of size 1 stay at 34 % out of distribution after 1,000 steps; 0, 0.02 and 0.1
# reach 99 % by step 700. The baseline is the same with 0 and with 0.1, there
# and on the Wikipedia sample.
POSITION_INIT = nn.initializers.zeros


# Activations of a feed-forward block, by T5X's names.
ACTIVATIONS = {
  'gelu': nn.gelu,
  'linear': lambda x: x,
  'relu': nn.relu,
  'silu': nn.silu,
  'swish': nn.silu,
}


class RMSNorm(nn.Module):
  """Root mean square normalisation over the last axis, with a learned scale.

  Source: arXiv 1910.07467. No mean is subtracted and there is no bias.

  Attributes:
    axis: the logical name of the normalised axis.
    dtype: the output's dtype; statistics are float32 at least.
    epsilon: keeps a row of zeros finite.
    adds_one: whether 1 + scale multiplies, as in Gemma; the scale then begins
      at 0 and not at 1.
  """

  axis: str = 'embed'
  dtype: Any = jnp.float32
  epsilon: float = 1e-6
  adds_one: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [..., M] to [..., M]."""
    scale = partitioning.param_with_axes(
      'scale',
      nn.initializers.zeros if self.adds_one else nn.initializers.ones,
      x.shape[-1:],
      jnp.float32,
      axes=(self.axis,),
    )
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(mean_square + self.epsilon)
    factor = 1 + scale if self.adds_one else scale
    return (x * factor).astype(self.dtype)


class Dense(nn.Module):
  """A matrix product, by default without bias.

  Attributes:
    features: the size of the last axis of the output.
    axes: logical names of the kernel's axes, input first.
    dtype: the product's dtype.
    kernel_init: gives the initial kernel, [in, features].
    shape: the kernel's shape if it has more than these two axes.
    bias_axes: how many of the kernel's last axes the bias has, which is added
      to the product and begins at 0; 0 for no bias.
  """

  features: int
  axes: tuple[str, ...]
  dtype: Any = jnp.float32
  kernel_init: Callable[..., jax.Array] = KERNEL_INIT
  shape: tuple[int, ...] | None = None
  bias_axes: int = 0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [..., in] to [..., features]."""
    joined = (x.shape[-1], self.features)
    kernel = partitioning.param_with_axes(
      'kernel',
      lambda rng, shape, dtype: self.kernel_init(rng, joined, dtype).reshape(
        shape
      ),
      self.shape or joined,
      jnp.float32,
      axes=self.axes,
    )
    y = x.astype(self.dtype) @ kernel.reshape(joined).astype(self.dtype)
    if not self.bias_axes:
      return y
    bias = partitioning.param_with_axes(
      'bias',
      nn.initializers.zeros,
      kernel.shape[-self.bias_axes :],
      jnp.float32,
      axes=self.axes[-self.bias_axes :],
    )
    return y + bias.reshape(-1).astype(self.dtype)


class Embed(nn.Module):
  """A table of learned vectors.

  Attributes:
    num_embeddings: rows of the table.
    features: M, size of a vector.
    axis: the logical name of the table's rows.
    embedding_init: gives the initial table.
    dtype: the output's dtype.
  """

  num_embeddings: int
  features: int
  axis: str = 'vocab'
  embedding_init: Callable[..., jax.Array] = TOKEN_INIT
  dtype: Any = jnp.float32

  def setup(self):
    """Makes the table for both methods."""
    self.embedding = partitioning.param_with_axes(
      'embedding',
      self.embedding_init,
      (self.num_embeddings, self.features),
      jnp.float32,
      axes=(self.axis, 'embed'),
    )

  def __call__(self, ids: jax.Array) -> jax.Array:
    """Maps i32[B, N] to [B, N, M]; an id beyond the table gives NaN."""
    return jnp.take(self.embedding.astype(self.dtype), ids, axis=0)

  def attend(self, x: jax.Array) -> jax.Array:
    """Maps [B, N, M] to the products with every row, f32[B, N, rows]."""
    dtype = jnp.promote_types(self.dtype, jnp.float32)
    return x.astype(dtype) @ self.embedding.astype(dtype).T


class FeedForward(nn.Module):
  """The feed-forward block: (f0(x W0) * f1(x W1)) W, or f(x W0) W.

  Source: arXiv 2002.05202. ('silu', 'linear') is SwiGLU, ('gelu', 'linear') is
  T5 1.1's, ('relu',) T5 1.0's.

  Attributes:
    mlp_dim: the hidden size.
    activations: a name in ACTIVATIONS for each factor.
    dropout_rate: the rate of hidden activations, one mask for all positions.
    dtype: the computation's dtype.
    bias: whether its matrix products have biases.
  """

  mlp_dim: int
  activations: Sequence[str] = ('silu', 'linear')
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
    """Maps [B, N, M] to [B, N, M]."""
    alone = len(self.activations) == 1
    factors = [
      ACTIVATIONS[activation](
        Dense(
          self.mlp_dim,
          ('embed', 'mlp'),
          self.dtype,
          bias_axes=int(self.bias),
          name='wi' if alone else f'wi_{i}',
        )(x)
      )
      for i, activation in enumerate(self.activations)
    ]
    y = functools.reduce(operator.mul, factors)
    y = partitioning.with_sharding_constraint(y, ('batch', 'length', 'mlp'))
    y = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))(
      y, deterministic=deterministic
    )
    return Dense(
      x.shape[-1],
      ('mlp', 'embed'),
      self.dtype,
      bias_axes=int(self.bias),
      name='wo',
    )(y)


def heads_axis(heads: int) -> str | None:
  """Returns the logical axis of a number of heads of an activation.

  Keys have fewer heads than queries where these are grouped: what the mesh's
  axis of heads does not divide stays whole on every device.
  """
  split = mesh.split(1, heads)
  return 'heads' if split is None or split.heads else None


def project_heads(
  x: jax.Array,
  num_heads: int,
  head_dim: int,
  *,
  name: str,
  dtype: Any,
  kernel_init: Callable[..., jax.Array] = KERNEL_INIT,
  split: bool = False,
  bias: bool = False,
) -> jax.Array:
  """Maps [B, N, M] to [B, N, H, D] by a kernel of the calling module.

  The kernel is [M, H D], or [M, H, D] if split. A bias has its last axes.
  """
  joined = Dense(
    num_heads * head_dim,
    ('embed', 'heads', 'kv') if split else ('embed', 'joined_kv'),
    dtype,
    kernel_init,
    (x.shape[-1], num_heads, head_dim) if split else None,
    bias_axes=(2 if split else 1) * bias,
    name=name,
  )(x)
  heads = joined.reshape(*x.shape[:-1], num_heads, head_dim)
  return partitioning.with_sharding_constraint(
    heads, ('batch', 'length', heads_axis(num_heads), 'kv')
  )


def join_heads(
  x: jax.Array,
  features: int,
  *,
  dtype: Any,
  kernel_init: Callable[..., jax.Array] = KERNEL_INIT,
  split: bool = False,
  bias: bool = False,
) -> jax.Array:
  """Maps [B, N, H, D] to [B, N, features] by the caller's kernel `out`.

  The kernel is [H D, features], or [H, D, features] if split.
  """
  return Dense(
    features,
    ('heads', 'kv', 'embed') if split else ('joined_kv', 'embed'),
    dtype,
    kernel_init,
    (*x.shape[2:], features) if split else None,
    bias_axes=int(bias),
    name='out',
  )(x.reshape(*x.shape[:2], -1))


def drop_keys(
  value: jax.Array, rate: float, *, deterministic: bool
) -> jax.Array:
  """Drops attention weights as T5X does: one mask per key, for all queries.

  The weights of a column share one mask, which is the same as dropping the
  value, [B, N, H, D].
  """
  return nn.Dropout(rate, broadcast_dims=(-1,))(
    value, deterministic=deterministic
  )
