"""Causal self-attention of a decoder, through an injected function.

Shapes: B batch, N length, M model width, H heads, D head size.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from selective_t5x.attention import capabilities, masks
from selective_t5x.errors import UserError
from selective_t5x.nn import cache, evicting_cache, layers
from selective_t5x.nn.extensions import Extended, Extension, Heads
from selective_t5x.pruning import LayerPruning, pruned_attention


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
  kernel_init: Callable[..., jax.Array] = layers.KERNEL_INIT
  query_init: Callable[..., jax.Array] = layers.KERNEL_INIT
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

    def heads(name, init, per_head=1):
      return layers.project_heads(
        x,
        self.num_heads * per_head,
        self.head_dim,
        name=name,
        dtype=self.dtype,
        kernel_init=init,
        split=self.split_kernels,
      )

    queries_per_head = getattr(self.extension, 'queries_per_head', 1)
    query = heads('query', self.query_init, queries_per_head)
    key = heads('key', self.kernel_init)
    value = heads('value', self.kernel_init)
    projected = Heads(query, key, value)
    if self.normalise:
      query = layers.RMSNorm('kv', self.dtype, name='query_norm')(query)
      key = layers.RMSNorm('kv', self.dtype, name='key_norm')(key)
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
    value = layers.drop_keys(
      value, self.dropout_rate, deterministic=deterministic
    )
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
      if where is None:  # A norm with a bias leaves no zeros.
        out = masks.zero_padding(out, segment_ids)
    return layers.join_heads(
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
  taken = capabilities.of(attention_fn).arguments
  for name in (*extended.kept, *extended.given):
    if name not in taken:
      raise UserError(
        f'ATTENTION_EXTENSION = @{type(extension).__name__} gives {name}, '
        f'which the attention function ({capabilities.name(attention_fn)}) '
        'does not take: use the gin/attention/ file that provides both'
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
