"""Pruned attention over whole rows, equal to decoding with eviction."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Shaped

from selective_t5x import attention
from selective_t5x.attention import capabilities, checks, reference
from selective_t5x.attention.arrays import Array, Scalar
from selective_t5x.attention.distance_bias import (
  DistanceBias,
  as_array,
  four_axes,
)
from selective_t5x.attention.selection import spread
from selective_t5x.errors import UserError
from selective_t5x.pruning import certified, pool
from selective_t5x.pruning.eviction import keep_mask
from selective_t5x.pruning.policy import Policy, Tokens


class Pruned(NamedTuple):
  """The results of pruned attention.

  Attributes:
    out: [B, N, H, D] in value's dtype, zero in padding rows.
    kept: bool[B, N, N], the keys that a query, axis 1, attends to; bool[B, H,
      N, N] if each head keeps its own.
    masking: F as the attention function returns it, f32[B, N, N], or
      [B, G, N, N] where G > 1 heads select; None where none does.
    scores: f32[B, N, ...], the policy's accumulated scores after the query
      `last`; None unless it is given and the policy accumulates.
    memory: f32[B, N], M with memory_tau, as if nothing were evicted; else None.
    totals: the policy's totals after the query `last`; {} for none.
    certificate: f32[B, N, H], an upper limit of the weight that the query, axis
      1, would give to all keys that were dropped; None unless the policy
      certifies.
  """

  out: Float[Array, 'B N H D']
  kept: Bool[Array, 'B *H N N']
  masking: Float[Array, 'B *G N N'] | None
  scores: Float[Array, 'B N *rest'] | None
  memory: Float[Array, 'B N'] | None
  totals: Mapping[str, Array] = {}
  certificate: Float[Array, 'B N H'] | None = None


def pruned_attention(
  attention_fn: Callable[..., Any],
  policy: Policy,
  query: Float[Array, 'B N H D'],
  key: Float[Array, 'B N H D'],
  value: Float[Array, 'B N H D'],
  *,
  budget: Int[Array, ''] | int,
  layer: Int[Array, ''] | int = 0,
  scale: Scalar | None = None,
  bias: Float[Array, '...'] | DistanceBias | None = None,
  segment_ids: Shaped[Array, 'B N'] | None = None,
  memory_tau: Scalar | None = None,
  prefix: Shaped[Array, 'B N'] | None = None,
  last: Int[Array, ' B'] | None = None,
  bias_limit: Float[Array, '#B H'] | None = None,
  **settings,
) -> Pruned:
  """Attends as sequential decoding with an evicting cache would.

  F does not depend on evictions, so one pass computes it. Then a scan over
  queries finds the kept keys, and all queries attend at once. It takes O(N^2)
  memory. A budget of N or more prunes nothing. Where G > 1 heads select,
  policies read the mean of their F. Source: arXiv 2410.02703, section 4.

  Args:
    attention_fn: `attention.causal_attention`, `attention.selective_attention`
      or a function with their arguments.
    policy: decides which key is evicted.
    query: [B, N, H, D].
    key: [B, N, H, D].
    value: [B, N, H, D].
    budget: i32[], how many keys this layer may hold, 2 or more; may be traced.
    layer: the layer's number, from 0.
    scale: multiplies the logits; None for D ** -0.5.
    bias: added to the logits; broadcasts to [B, H, N, N], or a DistanceBias, of
      which an array is made.
    segment_ids: i32[B, N], 0 for padding; None for one segment.
    memory_tau: a number requests M.
    prefix: must be None, as eviction is causal.
    last: i32[B], the query after which scores and totals are returned; None for
      neither.
    bias_limit: f32[B or 1, H], no bias exceeds it, also that of queries after
      the row; None for the largest in `bias`. Only certificates read it.
    **settings: more arguments of attention_fn.

  Returns:
    A Pruned.

  Raises:
    UserError: if a prefix is given, or the policy needs F and there is none.
  """
  if prefix is not None:
    raise UserError(
      'a pruned cache reads causally: with PRUNING set, use '
      'models.LanguageModel.inputs_bidirectional_attention = False'
    )
  check_suits(policy, attention_fn)
  if policy.certifies:
    certified.check_grows(attention_fn, query.shape[2])
    if bias_limit is None:
      bias_limit = largest_bias(bias)
  bias = as_array(bias, query.shape[1], query.shape[1])
  can = capabilities.of(attention_fn)
  if can.implementation:
    # Faster ones cannot return F, and save no memory with this bias.
    settings['implementation'] = 'reference'
  attend = functools.partial(
    attention_fn, scale=scale, segment_ids=segment_ids, **settings
  )
  masking = groups = memory = None
  if can.masking:
    tau = {} if memory_tau is None else {'memory_tau': memory_tau}
    _, *memory, masking = attend(
      query, key, value, bias=bias, return_masking=True, **tau
    )
    memory = memory[0] if memory else None
    groups = masking if masking.ndim == 4 else masking[:, None]
    masked = spread(groups, query.shape[2])
    bias = -masked if bias is None else bias - masked
    attend = functools.partial(
      attention.causal_attention,
      scale=scale,
      segment_ids=segment_ids,
      implementation='reference',
    )
  factor = checks.scale('pruned_attention', scale, query)
  logits = None
  if policy.reads_logits:
    logits = reference.attention_logits(query, key, factor, bias)
  if segment_ids is None:
    segment_ids = jnp.ones(query.shape[:2], jnp.int32)
  keep = pool.keep_mask if policy.per_head else keep_mask
  kept = keep(
    policy,
    segment_ids,
    budget=budget,
    layer=layer,
    masking=None if groups is None else jnp.mean(groups, axis=1),
    logits=logits,
    tokens=tokens_of(query, key, value, factor, bias_limit)
    if policy.reads_keys
    else None,
    last=last,
  )
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  # It is far below any logit, and finite with any logit added.
  least = jnp.finfo(dtype).min / 2
  penalty = jnp.where(kept.keys, jnp.zeros((), dtype), least)
  if not policy.per_head:
    penalty = penalty[:, None]
  bias = penalty if bias is None else bias + penalty
  out = attend(query, key, value, bias=bias)
  return Pruned(
    out,
    kept.keys,
    masking,
    kept.scores,
    memory,
    kept.totals,
    kept.certificate,
  )


def largest_bias(
  bias: Float[Array, '...'] | DistanceBias | None,
) -> Float[Array, '#B #H'] | None:
  """Returns the largest bias of each head, [B or 1, H or 1], or None."""
  if bias is None:
    return None
  if isinstance(bias, DistanceBias):
    return bias.largest()
  return jnp.max(four_axes(bias), axis=(2, 3))


def tokens_of(
  query: Float[Array, 'B *N H D'],
  key: Float[Array, 'B S H D'],
  value: Float[Array, 'B S H D'],
  scale: Scalar,
  bias_limit: Float[Array, '#B H'] | None = None,
) -> Tokens:
  """Returns what a policy that `reads_keys` sees.

  Args:
    query: [B, N, H, D] of whole rows, [B, H, D] of one query.
    key: [B, S, H, D].
    value: [B, S, H, D].
    scale: multiplies the products.
    bias_limit: no bias exceeds it; None without one.
  """
  dtype = jnp.promote_types(value.dtype, jnp.float32)
  norms = jnp.linalg.norm(value.astype(dtype), axis=3)
  return Tokens(
    query, key, norms, scale, 0.0 if bias_limit is None else bias_limit
  )


def check_suits(policy: Policy, attention_fn: Callable[..., Any]):
  """Raises UserError if an attention function has no F for a policy's needs.

  It also raises if the attention function cannot be pruned.
  """
  name = capabilities.name(attention_fn)
  can = capabilities.of(attention_fn)
  if policy.per_head and not is_plain(attention_fn):
    raise UserError(
      f'pruning.{type(policy).__name__} keeps keys of its own for each head, '
      f'but the attention function ({name}) reads those of another head, or is '
      'no plain softmax: use ATTENTION = @attention.causal_attention '
      '(gin/attention/baseline.gin), or a policy whose heads share their keys, '
      'e.g. gin/pruning/snapkv.gin'
    )
  if can.needs_every_key:
    raise UserError(
      f'pruning.{type(policy).__name__}: the attention function ({name}) needs '
      'every key in its place, but a pruned cache drops some: use PRUNING = '
      'None or ATTENTION = @attention.selective_attention '
      '(gin/attention/selective.gin)'
    )
  if policy.reads_masking and not can.masking:
    raise UserError(
      f'pruning.{type(policy).__name__} evicts by what selection has masked, '
      f'but the attention function ({name}) does not select: '
      'use ATTENTION = @attention.selective_attention '
      '(gin/attention/selective.gin), or another policy, e.g. gin/pruning/'
      'h2o.gin'
    )


def is_plain(attention_fn: Callable[..., Any]) -> bool:
  """Returns whether a function is causal_attention, also behind partials."""
  while attention_fn is not None:
    if attention_fn is attention.causal_attention:
      return True
    attention_fn = getattr(
      attention_fn, 'func', getattr(attention_fn, '__wrapped__', None)
    )
  return False
