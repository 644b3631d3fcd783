"""Pruned attention by blocks of queries: prompts without N x N arrays.

Equal to `whole_rows.pruned_attention`. A block holds the logits of C queries,
f32[B, H, C, N], and what its last query leaves goes to the next block. Source:
ours.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from selective_t5x.attention import (
  capabilities,
  checks,
  masks,
  memory,
  nonfinite,
  query_blocks,
  reference,
)
from selective_t5x.attention.arrays import Array
from selective_t5x.attention.distance_bias import DistanceBias, four_axes
from selective_t5x.attention.selection import spread
from selective_t5x.pruning import certified, eviction, pool, whole_rows
from selective_t5x.pruning.policy import Policy

# Queries of a block. Shorter rows are attended to at once.
SIZE = 128

# The arguments of `pruned_attention` that a loop over blocks supports.
_SUPPORTED = frozenset(
  {
    *('budget', 'layer', 'scale', 'bias', 'segment_ids', 'memory_tau'),
    *('prefix', 'last', 'bias_limit', 'implementation', 'masking_scale'),
    *('selection_query', 'selection_key', 'forget_below'),
  }
)


class PrunedRows(NamedTuple):
  """The results of pruned attention, of no query but the last more than O(N).

  Attributes:
    out: [B, N, H, D] in value's dtype, zero in padding rows.
    kept: bool[B, N], the keys that the query `last` keeps; bool[B, H, N] if
      each head keeps its own; None without `last`.
    masking: f32[B, N], or [B, G, N] where G > 1 heads select: the row of F that
      the token after `last` reads; any row without `last`; None where nothing
      selects.
    scores: as in `whole_rows.Pruned`.
    memory: as there.
    totals: as there.
    certificate: as there.
  """

  out: Float[Array, 'B N H D']
  kept: Bool[Array, 'B *H N'] | None
  masking: Float[Array, 'B *G N'] | None
  scores: Float[Array, 'B N *rest'] | None
  memory: Float[Array, 'B N'] | None
  totals: Mapping[str, Array]
  certificate: Float[Array, 'B N H'] | None


def pruned_rows(
  attention_fn: Callable[..., Any],
  policy: Policy,
  query: Float[Array, 'B N H D'],
  key: Float[Array, 'B N H D'],
  value: Float[Array, 'B N H D'],
  *,
  size: int | None = None,
  **arguments,
) -> PrunedRows:
  """Attends as sequential decoding with an evicting cache would.

  It goes block by block if the rows are longer than a block, and the attention
  function is plain or can return F by blocks; else it calls
  `whole_rows.pruned_attention`.

  Args:
    attention_fn: see `whole_rows.pruned_attention`.
    policy: decides which key is evicted.
    query: [B, N, H, D].
    key: [B, N, H, D].
    value: [B, N, H, D].
    size: C, queries of a block; None for SIZE.
    **arguments: those of `whole_rows.pruned_attention`.

  Raises:
    UserError: as `whole_rows.pruned_attention`.
  """
  size = size or SIZE
  can = capabilities.of(attention_fn)
  if (
    query.shape[1] <= size
    or not (can.block_start or whole_rows.is_plain(attention_fn))
    or arguments.get('prefix') is not None
    or not _SUPPORTED >= set(arguments)
  ):
    return _of_whole(
      whole_rows.pruned_attention(
        attention_fn, policy, query, key, value, **arguments
      ),
      arguments.get('last'),
    )
  whole_rows.check_suits(policy, attention_fn)
  if policy.certifies:
    certified.check_grows(attention_fn, query.shape[2])
  return _by_blocks(
    attention_fn, policy, query, key, value, size=size, **arguments
  )


def _of_whole(
  pruned: whole_rows.Pruned, last: Int[Array, ' B'] | None
) -> PrunedRows:
  """Takes the rows of the query `last`, and of F that of the token after it."""
  masking = pruned.masking
  if last is None:
    kept = None
    masking = None if masking is None else masking[..., -1, :]
  else:
    kept = row_of(pruned.kept, last)
    if masking is not None:
      masking = row_of(masking, jnp.minimum(last + 1, masking.shape[-1] - 1))
  return PrunedRows(
    pruned.out,
    kept,
    masking,
    pruned.scores,
    pruned.memory,
    pruned.totals,
    pruned.certificate,
  )


def row_of(x: Array, query: Int[Array, ' B']) -> Array:
  """Takes the row of one query, i32[B]: [B, ..., N, N] to [B, ..., N]."""
  index = query.reshape(-1, *(1,) * (x.ndim - 1))
  return jnp.take_along_axis(x, index, axis=-2)[..., 0, :]


def _by_blocks(
  attention_fn,
  policy,
  query,
  key,
  value,
  *,
  size,
  budget,
  layer=0,
  scale=None,
  bias=None,
  segment_ids=None,
  memory_tau=None,
  prefix=None,
  last=None,
  bias_limit=None,
  implementation=None,
  **settings,
) -> PrunedRows:
  """Attends block by block; arguments as in `pruned_rows`."""
  del prefix, implementation
  if policy.certifies and bias_limit is None:
    bias_limit = whole_rows.largest_bias(bias)
  batch, length, heads, _ = query.shape
  if segment_ids is None:
    segment_ids = jnp.ones((batch, length), jnp.int32)
  factor = checks.scale('pruned_rows', scale, query)
  rows = _Rows(size, length)
  # Padding, which no query sees, makes whole blocks.
  query, key, value, ids = map(rows.pad, (query, key, value, segment_ids))
  bias = rows.pad_bias(bias)
  masking_of, total = None, None
  if capabilities.of(attention_fn).block_start:
    masking_of, total = _masking_rows(
      attention_fn, rows, query, key, value, bias, ids, scale, settings
    )
  # A token that is not finite must not reach queries before it.
  queries, keys, values, _, faults = nonfinite.clean_heads(
    query, key, value, live=ids
  )
  tokens = None
  if policy.reads_keys:
    tokens = whole_rows.tokens_of(query, key, value, factor, bias_limit)
  serve, state = _server(policy, ids, query, tokens, budget, layer, last)

  def attend(carry, first):
    states, total, following = carry
    own_bias = rows.block_of_bias(bias, first)
    logits = reference.attention_logits(
      rows.block(queries, first), keys, factor, own_bias
    )
    groups, broken = None, jnp.zeros((batch, 1, size), bool)
    if masking_of:
      masking, total = masking_of(first, total, own_bias)
      if last is not None:
        # A full row has no next token.
        index = jnp.minimum(last + 1, length - 1) - first
        following = _row_in_block(masking, following, index)
      groups = masking if masking.ndim == 4 else masking[:, None]
      broken = jnp.any(jnp.isnan(groups), axis=-1)
      groups = jnp.where(jnp.isnan(groups), 0, groups)
      logits -= spread(groups, heads)
    states, kept, certificate = serve(
      states,
      first + jnp.arange(size),
      logits,
      None if groups is None else jnp.mean(groups, axis=1),
      tokens and tokens._replace(query=rows.block(query, first)),
    )
    seen = query_blocks.visible(first, size, logits.shape[-1], ids)
    out = _attended(logits, kept, values, seen, broken)
    memories = None
    if memory_tau is not None:
      memories = memory.count_visible(groups, seen[:, None], memory_tau)
      memories = jnp.mean(nonfinite.mark(memories, broken), axis=1)
    return (states, total, following), (out, memories, certificate)

  firsts = jnp.arange(query.shape[1] // size) * size
  ((_, remembered), total, following), every = jax.lax.scan(
    attend, ((state, None if last is None else state), total, total), firsts
  )
  out, memories, certificate = (rows.join(x) for x in every)
  reached, _ = faults.reach(
    nonfinite.causally(masks.segment_starts(query.shape[1], ids))
  )
  out = masks.zero_padding(out, segment_ids)
  out = nonfinite.mark(out, reached[:, :length])
  if certificate is not None:
    certificate = masks.zero_padding(certificate, segment_ids)
  kept, scores = _of_last(policy, remembered, rows, heads)
  return PrunedRows(
    out=out,
    kept=kept,
    masking=rows.cut(total if last is None else following),
    scores=scores,
    memory=memories,
    totals={} if remembered is None else remembered.totals,
    certificate=certificate,
  )


def _attended(logits, kept, values, seen, broken):
  """Attends to the keys that are kept, [B, C, H, D].

  Args:
    logits: [B, H, C, N].
    kept: bool[B, H or 1, C, N].
    values: [B, N, H, D].
    seen: bool[B or 1, C, N], which keys a query may see.
    broken: bool[B, G, C], the queries whose F is not a number.
  """
  # It is far below any logit, and finite with any logit added.
  least = jnp.finfo(logits.dtype).min / 2
  out = reference.attend(jnp.where(kept, logits, least), values, seen)
  heads = logits.shape[1]
  return nonfinite.mark(
    out, nonfinite.per_head(jnp.swapaxes(broken, 1, 2), heads)
  )


def _of_last(policy, remembered, rows, heads):
  """Returns the keys that the query `last` keeps, and the scores after it."""
  if remembered is None:
    return None, None
  # Entries of a pool are those of N positions, H each.
  entries = rows.length * (heads if policy.per_head else 1)
  kept = remembered.held[:, :entries]
  if policy.per_head:
    kept = jnp.swapaxes(kept.reshape(-1, rows.length, heads), 1, 2)
  scores = remembered.scores[:, :entries] if policy.accumulates else None
  return kept, scores


def _masking_rows(
  attention_fn, rows, query, key, value, bias, ids, scale, settings
):
  """Returns the function of the rows of F of a block, and its start.

  It maps (the block's first query, the sum before it, the biases of its
  queries) to (the rows of F, the sum for the next block).
  """
  own = {
    name: rows.pad(settings[name])
    for name in ('selection_query', 'selection_key')
    if settings.get(name) is not None
  }

  def masking_of(first, total, own_bias):
    of_block = dict(own)
    if own:
      of_block['selection_query'] = rows.block(own['selection_query'], first)
    return attention_fn(
      rows.block(query, first),
      key,
      value,
      scale=scale,
      bias=own_bias,
      segment_ids=ids,
      block_start=first,
      masking=total,
      **{**settings, **of_block},
    )

  def start():
    first = jnp.array(0)
    return masking_of(first, None, rows.block_of_bias(bias, first))[1]

  shape = jax.eval_shape(start)
  return masking_of, jnp.zeros(shape.shape, shape.dtype)


def _server(policy, ids, query, tokens, budget, layer, last):
  """Returns what evicts for the queries of a block, and the first state."""
  heads, dtype = query.shape[2], jnp.promote_types(query.dtype, jnp.float32)

  def of_heads(states, queries, logits, masking, tokens):
    del masking, tokens
    states, kept = pool.serve(
      policy, ids, states, queries, budget=budget, logits=logits, last=last
    )
    return states, kept, None

  def of_all(states, queries, logits, masking, tokens):
    states, kept, certificate = eviction.serve(
      policy,
      ids,
      states,
      queries,
      budget=budget,
      layer=layer,
      masking=masking,
      logits=logits,
      tokens=tokens,
      last=last,
    )
    return states, kept[:, None], certificate

  if policy.per_head:
    state = pool.start(policy, ids, logits_dtype=dtype, num_heads=heads)
    return of_heads, state
  if not policy.reads_logits:
    dtype = jnp.float32
  return of_all, eviction.start(policy, ids, logits_dtype=dtype, tokens=tokens)


def _row_in_block(block, row, index):
  """Returns the block's row at i32[B], or `row` where it has none."""
  size = block.shape[-2]
  own = row_of(block, jnp.clip(index, 0, size - 1))
  here = (index >= 0) & (index < size)
  return jnp.where(here.reshape(-1, *(1,) * (own.ndim - 1)), own, row)


class _Rows(NamedTuple):
  """Rows of N tokens as whole blocks of C."""

  size: int
  length: int

  def pad(self, x: Array) -> Array:
    """Pads axis 1 to whole blocks."""
    return self._pad(x, 1)

  def _pad(self, x, axis):
    amounts = [(0, 0)] * x.ndim
    amounts[axis] = (0, -self.length % self.size)
    return jnp.pad(x, amounts)

  def pad_bias(
    self, bias: Array | DistanceBias | None
  ) -> Array | DistanceBias | None:
    """Pads a bias that broadcasts to [B, H, N, N]; adds missing axes."""
    if bias is None or isinstance(bias, DistanceBias):
      return bias
    bias = four_axes(bias)
    for axis in (2, 3):
      bias = bias if bias.shape[axis] == 1 else self._pad(bias, axis)
    return bias

  def block(self, x: Array, first: Array) -> Array:
    """Returns a block of axis 1."""
    return jax.lax.dynamic_slice_in_dim(x, first, self.size, axis=1)

  def block_of_bias(
    self, bias: Array | DistanceBias | None, first: Array
  ) -> Array | None:
    """Returns the bias of a block's queries, [B or 1, H or 1, C or 1, N]."""
    if isinstance(bias, DistanceBias):
      padded = self.length + -self.length % self.size
      return bias.block(first, self.size, padded)
    if bias is None or bias.shape[2] == 1:
      return bias
    return jax.lax.dynamic_slice_in_dim(bias, first, self.size, axis=2)

  def join(self, blocks: Array | None) -> Array | None:
    """Turns [N / C, B, C, ...] into [B, N, ...] without padding."""
    if blocks is None:
      return None
    x = jnp.moveaxis(blocks, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, : self.length]

  def cut(self, x: Array | None) -> Array | None:
    """Cuts the padding off the last axis."""
    return None if x is None else x[..., : self.length]
