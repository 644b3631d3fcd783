"""Causal self-attention of a decoder with an injected attention function.

Shapes: B batch, N length, M model width, H heads of queries, R heads of keys
and values, D head size.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from selective_t5x.attention import capabilities, grouped, masks, rotary
from selective_t5x.attention.rotary import Rotary
from selective_t5x.errors import UserError
from selective_t5x.nn import (
  cache,
  evicting_cache,
  layers,
  pooled_cache,
  t5_layers,
)
from selective_t5x.nn.call import Call
from selective_t5x.nn.extensions import Extended, Extension, Heads
from selective_t5x.pruning import Policy
from selective_t5x.pruning.query_blocks import pruned_rows


class SelfAttention(nn.Module):
  """Multi-head causal self-attention with an injected attention function.

  The paper's decoder normalises queries and keys (RMSNorm over the head
  dimension), which bounds the logits and so the selection scores. The paper
  gives no details; here one learned scale vector of size D for queries and one
  for keys are shared by the heads, and the logits are then scaled by D ** -0.5.
  T5 does neither: its initial query kernel has the scale.

  With fewer heads of keys than of queries, `attention.grouped` says which query
  heads share which keys, and what selects. Rotary embeddings rotate normalised
  queries and keys by their own positions, and the caches hold rotated keys: so
  a key keeps its original position whichever other keys are evicted.

  Attributes:
    num_heads: H.
    head_dim: D.
    num_kv_heads: R, a divisor of H; None for H.
    attention_fn: takes (query, key, value, *, segment_ids) like
      `attention.selective_attention`. It must also take scale and bias if they
      are used, memory_tau with the memory loss, prefix if inputs see each
      other, and for decoding the arguments of `cache.KeyValueCache`.
    dropout_rate: the rate of the attention weights.
    dtype: the computation's dtype.
    normalise: whether queries and keys are normalised.
    norm_epsilon: of their normalisation.
    norm_adds_one: as in `layers.RMSNorm`.
    rotary: rotates queries and keys; None for none.
    qkv_bias: whether the projections to heads have biases.
    out_bias: whether the output projection has one.
    scale: multiplies the logits; None for D ** -0.5.
    kernel_init: gives the initial kernels.
    query_init: gives the initial kernel of the queries.
    policy: decides which keys are kept; None for all. The call has the budget.
    extension: makes the attention function's `extensions.Extension`, with
      parameters under `extension`; None for no extension.
    layer: the layer's number, from 0, for its budget, extension and policy.
    split_kernels: whether heads are an axis of the kernels, as in T5X's scanned
      layers.
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
  policy: Policy | None = None
  extension: Callable[..., Extension] | None = None
  layer: int = 0
  split_kernels: bool = False
  num_kv_heads: int | None = None
  norm_epsilon: float = 1e-6
  norm_adds_one: bool = False
  rotary: Rotary | None = None
  qkv_bias: bool = False
  out_bias: bool = False

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    call: Call,
    bias_fn: Callable[..., jax.Array] | None = None,
  ) -> jax.Array:
    """Attends, and sows what the call requests in 'intermediates'.

    That is M as `memory` with memory_tau, and the number of keys that each
    query reads as `live_keys` with live_keys.

    Args:
      x: [B, N, M].
      call: the facts of the network's call.
      bias_fn: gives the logits' bias, like `t5_layers.RelativeBias`. Its
        arguments are (N, None) for whole rows, and (N, position) in steps, or
        (positions of the keys, position) with pruning. None for no bias. Where
        the attention function takes biases by distance, and with pruning,
        whole rows get those of its method `by_distance`, if it has one.

    Returns:
      [B, N, M], zero in padding rows.

    Raises:
      UserError: if the attention function does not take the extension's
        arguments.
    """
    extended, finish = self._extended(x, call)
    query, key, value = extended.heads
    value = layers.drop_keys(
      value, self.dropout_rate, deterministic=call.deterministic
    )
    arguments: dict[str, Any] = {
      'scale': self.scale,
      'memory_tau': call.memory_tau,
      'prefix': call.prefix,
      'return_live_keys': call.live_keys or None,
    }
    arguments = {k: v for k, v in arguments.items() if v is not None}
    arguments |= extended.given
    budget: Any = None if self.policy is None else call.budgets[self.layer]
    if call.place is not None:
      keys: Any
      if self.policy is None:
        keys = cache.KeyValueCache(self.attention_fn, name='cache')
      else:
        pruned_cache: Any = (
          pooled_cache.PooledCache
          if self.policy.per_head
          else evicting_cache.EvictingCache
        )
        keys = pruned_cache(
          self.attention_fn, self.policy, budget, self.layer, name='cache'
        )
      out = keys(
        query,
        key,
        value,
        call.place,
        bias_fn=bias_fn,
        kept=extended.kept,
        **arguments,
      )
    else:
      if bias_fn is not None:
        arguments['bias'] = t5_layers.bias_of_rows(
          bias_fn,
          self.attention_fn if self.policy is None else None,
          x.shape[1],
        )
      attend = self.attention_fn
      if self.policy is not None:
        attend = functools.partial(
          self._attend_pruned,
          budget=budget,
          bias_limit=evicting_cache.bias_limit(self.policy, bias_fn),
        )
      out = attend(
        query,
        *(grouped.repeat(x, self.num_heads) for x in (key, value)),
        segment_ids=call.segment_ids,
        **arguments,
        **extended.kept,
      )
    sown = ['memory'] * (call.memory_tau is not None)
    sown += ['live_keys'] * call.live_keys
    if sown:
      out, *counts = out
      for name, count in zip(sown, counts, strict=True):
        self.sow('intermediates', name, count)
    return layers.join_heads(
      finish(out),
      x.shape[-1],
      dtype=self.dtype,
      kernel_init=self.kernel_init,
      split=self.split_kernels,
      bias=self.out_bias,
    )

  def _attend_pruned(self, *heads, **arguments):
    """Returns out, and M if requested, like the attention function."""
    pruned = pruned_rows(
      self.attention_fn, self.policy, *heads, layer=self.layer, **arguments
    )
    if self.policy.certifies:
      self.sow('intermediates', 'certificate', pruned.certificate)
    if 'memory_tau' in arguments:
      return pruned.out, pruned.memory
    return pruned.out

  def _extended(self, x, call):
    """Projects x to heads and applies the extension.

    Returns:
      Extended, and the function that finishes the attention's output.
    """

    def heads(name, init, number):
      return layers.project_heads(
        x,
        number,
        self.head_dim,
        name=name,
        dtype=self.dtype,
        kernel_init=init,
        split=self.split_kernels,
        bias=self.qkv_bias,
      )

    def norm(name):
      return layers.RMSNorm(
        'kv', self.dtype, self.norm_epsilon, self.norm_adds_one, name=name
      )

    queries_per_head = getattr(self.extension, 'queries_per_head', 1)
    shared = self.num_kv_heads or self.num_heads
    projected = normalised = Heads(
      heads('query', self.query_init, self.num_heads * queries_per_head),
      heads('key', self.kernel_init, shared),
      heads('value', self.kernel_init, shared),
    )
    if self.normalise:
      normalised = projected._replace(
        query=norm('query_norm')(projected.query),
        key=norm('key_norm')(projected.key),
      )
    if self.rotary is not None:
      position = _rotary_position(x.shape[1], call)
      normalised = normalised._replace(
        query=self.rotary.rotate(normalised.query, position),
        key=self.rotary.rotate(normalised.key, position),
      )
    if self.extension is None:
      return Extended(normalised), lambda out: out
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
      normalised,
      _position(x.shape[1], call.segment_ids, call.place),
      deterministic=call.deterministic,
    )
    _check_takes(self.attention_fn, extension, extended)

    def finish(out):
      out = extension.finish(x, out)
      if call.place is None:  # A norm with a bias leaves no zeros.
        out = masks.zero_padding(out, call.segment_ids)
      return out

    return extended, finish


def _position(length, segment_ids, place):
  """Returns positions in the segment, i32[B or 1, N], from 1."""
  if place is None:
    return 1 + masks.position_in_segment(length, segment_ids)
  # Rows are not packed while a model decodes.
  if place.position is None:
    return 1 + jnp.arange(length)[None]
  return 1 + place.position[:, None]


def _rotary_position(length, call):
  """Returns the original positions of the tokens, i32[B or 1, N], from 0.

  Along packed rows they count on: products depend on differences alone.
  """
  if call.place is not None and call.place.position is not None:
    return call.place.position[:, None]
  return rotary.rows(length) if call.positions is None else call.positions


def _check_takes(attention_fn, extension, extended):
  """Refuses an attention function that lacks the extension's arguments."""
  accepted = capabilities.of(attention_fn).arguments
  for name in (*extended.kept, *extended.given):
    if name not in accepted:
      raise UserError(
        f'ATTENTION_EXTENSION = @{type(extension).__name__} gives {name}, '
        f'which the attention function ({capabilities.name(attention_fn)}) '
        'does not take: use the gin/attention/ file that provides both'
      )
