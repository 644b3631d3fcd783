"""Flax layers of the paper's decoder and of T5.

Shapes: B batch, N length, M model width, H heads, D head size. Parameters are
float32 and carry T5X's logical axis names, so that a partitioner can shard
them; activations are in `dtype`.
"""

import functools
import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning

from selective_t5x import cache, evicting_cache
from selective_t5x.attention import masks
from selective_t5x.errors import UserError
from selective_t5x.extensions import Extended, Extension, Heads
from selective_t5x.pruning import LayerPruning, pruned_attention

# Kernels: variance 1 / fan-in keeps activations at unit size at every width.
KERNEL_INIT = nn.initializers.variance_scaling(
  1.0, 'fan_in', 'truncated_normal'
)
# T5X's choice for tokens: the residual stream starts at unit size.
TOKEN_INIT = nn.initializers.normal(stddev=1.0)
# Positions start at nothing, or they would drown what selection tells of near
# and far from the first step on (every later token adds to F). Measured on
# variable assignment (24 assignments, 2 layers, width 64, AdamW 0.001): entries
# of size 1 stay at 34 % out of distribution after 1,000 steps; 0, 0.02 and 0.1
# reach 99 % by step 700. The baseline is the same with 0 and with 0.1, there
# and on the Wikipedia sample.
POSITION_INIT = nn.initializers.zeros


# What a feed-forward block may multiply, by T5X's names.
ACTIVATIONS = {
  'gelu': nn.gelu,
  'linear': lambda x: x,
  'relu': nn.relu,
  'silu': nn.silu,
  'swish': nn.silu,
}


class RMSNorm(nn.Module):
  """Root mean square normalisation over the last axis, with a learned scale.

  Source: arXiv 1910.07467. No mean is taken off and there is no bias.

  Attributes:
    axis: the logical name of the normalised axis.
    dtype: of the output; statistics are float32 at least.
    epsilon: keeps a row of zeros finite.
  """

  axis: str = 'embed'
  dtype: Any = jnp.float32
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [..., M] to [..., M]."""
    scale = partitioning.param_with_axes(
      'scale',
      nn.initializers.ones,
      x.shape[-1:],
      jnp.float32,
      axes=(self.axis,),
    )
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(mean_square + self.epsilon)
    return (x * scale).astype(self.dtype)


class Dense(nn.Module):
  """A matrix product without bias.

  Attributes:
    features: size of the last axis of the output.
    axes: logical names of the kernel's axes, input first.
    dtype: of the product.
    kernel_init: gives the initial kernel, [in, features].
    shape: of the kernel where it has more axes than these two.
  """

  features: int
  axes: tuple[str, ...]
  dtype: Any = jnp.float32
  kernel_init: Callable[..., jax.Array] = KERNEL_INIT
  shape: tuple[int, ...] | None = None

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
    return x.astype(self.dtype) @ kernel.reshape(joined).astype(self.dtype)


class Embed(nn.Module):
  """A table of learned vectors.

  Attributes:
    num_embeddings: rows of the table.
    features: M, size of a vector.
    axis: the logical name of the table's rows.
    embedding_init: gives the initial table.
    dtype: of the output.
  """

  num_embeddings: int
  features: int
  axis: str = 'vocab'
  embedding_init: Callable[..., jax.Array] = TOKEN_INIT
  dtype: Any = jnp.float32

  def setup(self):
    """Makes the table, which both methods read."""
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
  T5 1.1's, ('relu',) that of T5 1.0.

  Attributes:
    mlp_dim: the hidden size.
    activations: names in ACTIVATIONS, one a factor.
    dropout_rate: of the hidden activations, one mask for all positions.
    dtype: of the computation.
  """

  mlp_dim: int
  activations: Sequence[str] = ('silu', 'linear')
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32

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
    return Dense(x.shape[-1], ('mlp', 'embed'), self.dtype, name='wo')(y)


def project_heads(
  x: jax.Array,
  num_heads: int,
  head_dim: int,
  *,
  name: str,
  dtype: Any,
  kernel_init: Callable[..., jax.Array] = KERNEL_INIT,
  split: bool = False,
) -> jax.Array:
  """Maps [B, N, M] to [B, N, H, D] by a kernel of the calling module.

  It is [M, H D], or [M, H, D] where it is split.
  """
  joined = Dense(
    num_heads * head_dim,
    ('embed', 'heads', 'kv') if split else ('embed', 'joined_kv'),
    dtype,
    kernel_init,
    (x.shape[-1], num_heads, head_dim) if split else None,
    name=name,
  )(x)
  split = joined.reshape(*x.shape[:-1], num_heads, head_dim)
  return partitioning.with_sharding_constraint(
    split, ('batch', 'length', 'heads', 'kv')
  )


def join_heads(
  x: jax.Array,
  features: int,
  *,
  dtype: Any,
  kernel_init: Callable[..., jax.Array] = KERNEL_INIT,
  split: bool = False,
) -> jax.Array:
  """Maps [B, N, H, D] to [B, N, features] by the caller's kernel `out`.

  It is [H D, features], or [H, D, features] where it is split.
  """
  return Dense(
    features,
    ('heads', 'kv', 'embed') if split else ('joined_kv', 'embed'),
    dtype,
    kernel_init,
    (*x.shape[2:], features) if split else None,
    name='out',
  )(x.reshape(*x.shape[:2], -1))


def drop_keys(
  value: jax.Array, rate: float, *, deterministic: bool
) -> jax.Array:
  """Drops attention weights as T5X does: one mask per key, for all queries.

  T5X drops a key of a head for all queries at once: the weights of a column
  share one mask, which is the same as dropping the value, [B, N, H, D].
  """
  return nn.Dropout(rate, broadcast_dims=(-1,))(
    value, deterministic=deterministic
  )


class SelfAttention(nn.Module):
  """Multi-head causal self-attention through an injected function.

  The paper's decoder normalises queries and keys (RMSNorm over the head
  dimension), which bounds the logits and so the selection scores. The paper
  says so without details; here the learned scale is one vector of D for queries
  and one for keys, shared by the heads, and the logits are then scaled by
  D ** -0.5. T5 does neither: its initial query kernel has the scale.

  Attributes:
    num_heads: H.
    head_dim: D.
    attention_fn: takes (query, key, value, *, segment_ids) as
      `attention.selective_attention` does, scale and bias where they are given,
      memory_tau where the memory loss is on, prefix where inputs see each
      other, and for cached decoding what `cache.KeyValueCache` asks for.
    dropout_rate: of the attention weights.
    dtype: of the computation.
    normalise: whether queries and keys are normalised.
    scale: multiplies the logits; None for D ** -0.5.
    kernel_init: gives the initial kernels.
    query_init: gives that of the queries.
    pruning: which keys are kept, and how many; None for all.
    extension: makes the `extensions.Extension` that goes with the attention
      function, parameters under `extension`; None for none.
    layer: the layer's number, from 0: what an extension may go by.
    split_kernels: whether heads are an axis of the kernels, as T5X has them in
      scanned layers.
  """

  num_heads: int
  head_dim: int
  attention_fn: Callable[..., Any]
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  normalise: bool = True
  scale: float | None = None
  kernel_init: Callable[..., jax.Array] = KERNEL_INIT
  query_init: Callable[..., jax.Array] = KERNEL_INIT
  pruning: LayerPruning | None = None
  extension: Callable[..., Extension] | None = None
  layer: int = 0
  split_kernels: bool = False

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    segment_ids: jax.Array,
    *,
    deterministic: bool,
    memory_tau: float | None = None,
    prefix: jax.Array | None = None,
    bias_fn: Callable[..., jax.Array] | None = None,
    where: cache.Place | None = None,
    budget: jax.Array | None = None,
  ) -> jax.Array:
    """Attends; with memory_tau it sows `memory`, M, in 'intermediates'.

    Args:
      x: [B, N, M].
      segment_ids: i32[B, N], 0 for padding; not read where `where` is given.
      deterministic: whether dropout is off.
      memory_tau: asks the attention function for M, f32[B, N].
      prefix: i32[B, N], 1 for tokens that see each other; None for no token.
      bias_fn: gives the logits' bias, as `t5_layers.RelativeBias` does: for (N,
        None) of whole rows, and of steps for (N, position) or, where keys are
        pruned, (positions of the keys, position); None for no bias.
      where: the place in the cache while decoding, else None.
      budget: i32[], in place of the pruning's for whole rows; may be traced.

    Returns:
      [B, N, M], zero in padding rows.

    Raises:
      UserError: if the attention function does not take what the extension
        gives.
    """

    def heads(name, init):
      return project_heads(
        x,
        self.num_heads,
        self.head_dim,
        name=name,
        dtype=self.dtype,
        kernel_init=init,
        split=self.split_kernels,
      )

    query = heads('query', self.query_init)
    key = heads('key', self.kernel_init)
    value = heads('value', self.kernel_init)
    projected = Heads(query, key, value)
    if self.normalise:
      query = RMSNorm('kv', self.dtype, name='query_norm')(query)
      key = RMSNorm('kv', self.dtype, name='key_norm')(key)
    extended = Extended(Heads(query, key, value))
    if self.extension is not None:
      extension = self.extension(
        num_heads=self.num_heads,
        head_dim=self.head_dim,
        layer=self.layer,
        dtype=self.dtype,
        name='extension',
      )
      extended = extension(
        x,
        projected,
        extended.heads,
        _position(x.shape[1], segment_ids, where),
        deterministic=deterministic,
      )
      _check_takes(self.attention_fn, extension, extended)
    query, key, value = extended.heads
    value = drop_keys(value, self.dropout_rate, deterministic=deterministic)
    asked = {'scale': self.scale, 'memory_tau': memory_tau, 'prefix': prefix}
    asked = {k: v for k, v in asked.items() if v is not None}
    asked |= extended.given
    if where is not None:
      keys = (
        cache.KeyValueCache(self.attention_fn, name='cache')
        if self.pruning is None
        else evicting_cache.EvictingCache(
          self.attention_fn, self.pruning, name='cache'
        )
      )
      out = keys(
        query, key, value, where, bias_fn=bias_fn, kept=extended.kept, **asked
      )
    else:
      if bias_fn is not None:
        asked['bias'] = bias_fn(x.shape[1], None)
      attend = self.attention_fn
      if self.pruning is not None:
        attend = functools.partial(
          _attend_pruned, self.attention_fn, self.pruning, budget=budget
        )
      out = attend(
        query, key, value, segment_ids=segment_ids, **asked, **extended.kept
      )
    if memory_tau is not None:
      out, memory = out
      self.sow('intermediates', 'memory', memory)
    if self.extension is not None:
      out = extension.finish(x, out)
    return join_heads(
      out,
      x.shape[-1],
      dtype=self.dtype,
      kernel_init=self.kernel_init,
      split=self.split_kernels,
    )


def _position(length, segment_ids, where):
  """Returns i32[B or 1, N], positions in the segment, from 1."""
  if where is None:
    return 1 + masks.position_in_segment(length, segment_ids)
  # Nothing is packed while a model decodes.
  if where.position is None:
    return 1 + jnp.arange(length)[None]
  return 1 + where.position[:, None]


def _check_takes(attention_fn, extension, extended):
  """Refuses an attention function that does not know what is extended."""
  taken = inspect.signature(attention_fn).parameters
  for name in (*extended.kept, *extended.given):
    if name not in taken:
      raise UserError(
        f'ATTENTION_EXTENSION = @{type(extension).__name__} gives {name}, '
        'which the attention function '
        f'({getattr(attention_fn, "__name__", attention_fn)}) does not take: '
        'use the gin/attention/ file that provides both'
      )


def _attend_pruned(
  attention_fn, pruning, query, key, value, *, budget, **asked
):
  """Returns out, and M where it is asked for, as the attention function."""
  pruned = pruned_attention(
    attention_fn,
    pruning.policy,
    query,
    key,
    value,
    budget=pruning.budget if budget is None else budget,
    layer=pruning.layer,
    **asked,
  )
  if 'memory_tau' in asked:
    return pruned.out, pruned.memory
  return pruned.out
