"""The public attention functions: checks, and the choice of implementation.

Shapes: B batch, N length, H heads, D head size. All causal attention functions
of the suite, also those of `variants`, share what follows.

Arguments:
  query: [B, N, H, D].
  key: [B, N, H, D].
  value: [B, N, H, D].
  scale: multiplies the logits; None for D ** -0.5.
  bias: added to the logits; broadcasts to [B, H, N, N]. Functions that declare
    the capability `distance_bias` also take a `distance_bias.DistanceBias`, of
    which 'blocked' makes no array of N x N.
  segment_ids: i32[B, N], 0 for padding, each run of equal ids a segment; None
    for one segment without padding.
  implementation: 'reference', 'blocked', 'pallas_tpu', 'pallas_gpu',
    'hopper_gpu' (selection alone), 'cudnn' (a baseline alone), or None for the
    best one available (`implementations.choose`).
  position: i32[B], in a decoding step the cache slot of the query token. The
    query is then [B, 1, H, D], and bias broadcasts to [B, H, 1, N].

Returns:
  [B, N, H, D] in value's dtype, [B, 1, H, D] in a step; zero in padding rows.
  The logits are float32 for every input dtype but float64.

Raises:
  ValueError: if the shapes do not fit together.
  UserError: if a setting is not valid, or the implementation does not support
    the arguments.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from selective_t5x.attention import (
  capabilities,
  checks,
  implementations,
  query_blocks,
  reference,
  steps,
)
from selective_t5x.attention.distance_bias import DistanceBias
from selective_t5x.attention.selection import (
  MEAN,
  PER_HEAD,
  Constraints,
  masking_at,
  select,
)
from selective_t5x.errors import UserError, is_integer


@capabilities.declare(distance_bias=True, implementation=True, key_ids=True)
def full_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  scale: float | None = None,
  bias: jax.Array | DistanceBias | None = None,
  query_ids: jax.Array,
  key_ids: jax.Array,
  implementation: str | None = None,
) -> jax.Array:
  """Bidirectional attention in a segment, for encoders and cross-attention.

  Args:
    query: [B, Q, H, D].
    key: [B, N, H, D].
    value: [B, N, H, D].
    scale: multiplies the logits; None for D ** -0.5.
    bias: added to the logits; broadcasts to [B, H, Q, N], or a DistanceBias.
    query_ids: i32[B, Q], the segment of each query, 0 for padding.
    key_ids: i32[B, N], the segment of each key, 0 for padding.
    implementation: 'reference', which has arrays of Q x N; 'blocked' and
      'pallas_gpu', which have none; None for the kernels on a GPU that they run
      on, but for one query, else for 'blocked' with more than 512 queries, else
      for 'reference'.

  Returns:
    [B, Q, H, D] in value's dtype; zero in padding rows and where a query's
    segment has no key. The logits are float32.

  Raises:
    ValueError: if the shapes do not fit together.
    UserError: if there is no such implementation, or it cannot run.
  """
  checks.key_shapes(query, key, value)
  for name, ids, tokens in (
    ('query_ids', query_ids, query),
    ('key_ids', key_ids, key),
  ):
    checks.token_ids(name, ids, tokens, axes='')
  checks.bias_shape(bias, query, key, by_distance=True)
  name = implementations.choose_full(implementation, query, bias)
  return implementations.FULL[name](
    query,
    key,
    value,
    scale=checks.scale('full_attention', scale, query),
    bias=bias,
    query_ids=query_ids,
    key_ids=key_ids,
  )


@capabilities.declare(implementation=True, prefix=True, distance_bias=True)
def causal_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  scale: float | None = None,
  bias: jax.Array | DistanceBias | None = None,
  segment_ids: jax.Array | None = None,
  prefix: jax.Array | None = None,
  implementation: str | None = None,
  position: jax.Array | None = None,
) -> jax.Array:
  """Plain causal softmax attention: the baseline.

  The tokens of a prefix see each other in both directions; all others stay
  causal. Source: Raffel et al., arXiv 1910.10683, section 3.2.1.

  Gin: `ATTENTION = @attention.causal_attention`.

  Args, beside those of this module:
    prefix: i32[B, N], 1 for the tokens of each segment's prefix, as T5X's
      decoder_causal_attention; None for no prefix. Only the reference has it.
  """
  scale = checks.scale('causal_attention', scale, query)
  if position is not None:
    checks.step(query, key, value, bias, position, by_distance=True)
    return steps.causal_step(
      query, key, value, scale=scale, bias=bias, position=position
    )
  checks.shapes(query, key, value, bias, segment_ids, prefix, by_distance=True)
  name = implementations.choose(
    implementation,
    'causal_attention',
    dtype=query.dtype,
    bias=bias is not None,
    bias_by_distance=isinstance(bias, DistanceBias),
    packed=segment_ids is not None,
    prefix=prefix is not None,
    sizes=query.shape[-1:],
  )
  settings = dict(scale=scale, bias=bias, segment_ids=segment_ids)
  if name == 'reference':
    return reference.causal_attention(
      query, key, value, prefix=prefix, **settings
    )
  out, _ = implementations.FAST[name](
    query, key, value, selection=None, memory_tau=None, **settings
  )
  return out


class Attended(NamedTuple):
  """The results of selective attention over whole rows.

  Attributes:
    out: [B, N, H, D].
    memory: M, f32[B, N]; None without memory_tau.
    live_keys: the keys that each query reads, f32[B, N]; None unless requested.
    masking: F, f32[B, N, N] or [B, G, N, N]; None unless requested.
    masking_row: one row of F, f32[B, N] or [B, G, N]; None unless requested.
  """

  out: jax.Array
  memory: jax.Array | None = None
  live_keys: jax.Array | None = None
  masking: jax.Array | None = None
  masking_row: jax.Array | None = None


@capabilities.declare(
  block_start=True,
  distance_bias=True,
  implementation=True,
  masking=True,
  masking_scale=True,
  memory_tau=True,
  return_live_keys=True,
)
def selective_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  scale: float | None = None,
  bias: jax.Array | DistanceBias | None = None,
  segment_ids: jax.Array | None = None,
  selection_head: int | str = 0,
  selection_groups: int = 1,
  selection_bias: bool = True,
  relu: bool = True,
  protect_bos: bool = True,
  protect_self: bool = True,
  selection_query: jax.Array | None = None,
  selection_key: jax.Array | None = None,
  masking_scale: jax.Array | float | None = None,
  memory_tau: float | None = None,
  forget_below: float | None = 0.0,
  return_live_keys: bool = False,
  implementation: str | None = None,
  return_masking: bool = False,
  masking_row: jax.Array | None = None,
  position: jax.Array | None = None,
  masking: jax.Array | None = None,
  block_start: jax.Array | None = None,
):
  """Causal attention whose tokens can mask earlier tokens for later queries.

  out = softmax(A - F + mask) V with A = scale * <query_i, key_j> + bias. F is
  the masking matrix of head `selection_head` (`masking_matrix`). All heads use
  it, that one too. No parameters are added. Source: arXiv 2410.02703, section
  3. Variants: the mean of all heads' logits selects; every head selects for
  itself (G = H); one head of each of G groups selects for its group; separate
  queries and keys select, each for H / G heads; a constraint of selection is
  dropped (`selection.Constraints`).

  Gin (a file of gin/attention/ for each variant):
    ATTENTION = @attention.selective_attention
    attention.selective_attention.selection_head = 0

  Args, beside those of this module:
    selection_head: the head whose logits select, 0 <= selection_head < H / G,
      counted in its group, or 'mean' or 'per_head'.
    selection_groups: G, a divisor of H: heads 0 to H / G - 1 are the first
      group, and so on. Above 1 only with a number for selection_head and
      without selection_query.
    selection_bias: whether the bias is part of the selection logits.
    relu: whether negative logits mask nothing; else they unmask, and F may be
      negative.
    protect_bos: whether the first token of a segment is never masked.
    protect_self: whether a token does not mask itself for later queries.
    selection_query: [B, N, G, E], G dividing H, or [B, 1, G, E] in a step. Its
      unscaled products with selection_key, plus the head's bias, replace the
      head's logits in selection. `selection_projections.SelectionProjections`
      makes both.
    selection_key: [B, N, G, E].
    masking_scale: multiplies F; zero or more. 0 is plain causal attention, None
      is 1. It may be traced; its gradient is not guaranteed.
    memory_tau: a positive number; M is then returned too.
    forget_below: eps, an upper bound of the weight that a query may lose by
      keys that are dropped, summed over them; 0 drops none. A key is dropped
      once F proves that no later query can give it weight (docs/forgetting.md).
      None is the rounding of value's dtype, 2 ** -24 for float32. 'blocked' and
      the kernels drop keys, only with relu; 'pallas_tpu' reads dead keys in a
      tile with live ones where there is a bias.
    return_live_keys: whether to return how many keys each query reads, the
      visible ones that are not dropped. Only 'blocked' can.
    return_masking: whether to return F too. Only the reference can.
    masking_row: i32[B], a row of F to return too; every implementation can. The
      tokens before it must be one segment without padding.
    masking: row `position` of F in a step, zeros at first: f32[B, N], or
      [B, G, N] where G > 1. With `block_start`, the sum of all earlier
      queries, None for zeros.
    block_start: i32[], the index of the first query of a block: the query is
      [B, C, H, D], an array as bias broadcasts to [B, H, C, N], and the result
      is F.

  Returns:
    out, or a tuple of out and the requested results, in this order:
      out: [B, N, H, D] in value's dtype; zero in padding rows.
      M: f32[B, N], the tokens each query still sees (`memory.visible_tokens`),
        the mean over the G; without relu a key with F below zero counts as one.
      the keys that each query reads: f32[B, N], the mean over the G.
      F: f32[B, N, N], or [B, G, N, N] where G > 1.
      the row of F: f32[B, N], or [B, G, N] where G > 1.
    A step returns out, [B, 1, H, D], and the masking of the next step.
    A block returns its rows of F, f32[B, C, N], or [B, G, C, N] where G > 1,
    and the masking of the next block.
    M and F are float32 for every input dtype but float64.
  """
  if position is not None:
    checks.step(query, key, value, bias, position, by_distance=True)
  elif block_start is not None:
    checks.block(query, key, value, bias, segment_ids)
  else:
    checks.shapes(query, key, value, bias, segment_ids, by_distance=True)
  constraints = Constraints(relu, protect_bos, protect_self)
  _check_settings(
    memory_tau,
    masking_scale,
    forget_below,
    selection_bias=selection_bias,
    **constraints._asdict(),
  )
  scale = checks.scale('selective_attention', scale, query)
  projections = checks.selection(query, key, selection_query, selection_key)
  selection = select(
    query,
    key,
    head=_selecting_heads(
      query.shape[2], selection_head, selection_groups, projections is not None
    ),
    scale=scale,
    bias=bias if selection_bias else None,
    own=projections,
    masking_scale=masking_scale,
    constraints=constraints,
  )
  if block_start is not None:
    return _masking_rows(selection, masking, block_start, segment_ids)
  settings: dict[str, Any] = dict(selection=selection, scale=scale, bias=bias)
  if position is not None:
    checks.masking(masking, selection.key)
    return steps.selective_step(
      query, key, value, position=position, masking=masking, **settings
    )
  attended = _attend_rows(
    query,
    key,
    value,
    implementation=implementation,
    return_live_keys=return_live_keys,
    return_masking=return_masking,
    segment_ids=segment_ids,
    memory_tau=memory_tau,
    forget_below=forget_below,
    **settings,
  )
  if masking_row is not None:
    row = _without_one_group(masking_at(selection, masking_row))
    attended = attended._replace(masking_row=row)
  results = tuple(x for x in attended if x is not None)
  return results if len(results) > 1 else attended.out


def _masking_rows(selection, masking, block_start, segment_ids):
  """Returns a block's rows of F and the next block's masking."""
  batch, length, groups, _ = selection.key.shape
  if masking is None:
    dtype = jnp.promote_types(selection.query.dtype, jnp.float32)
    total = jnp.zeros((batch, groups, length), dtype)
  else:
    checks.masking(masking, selection.key)
    total = masking.reshape(batch, groups, length)
  rows, total = query_blocks.masking_rows(
    selection, total, first=block_start, segment_ids=segment_ids
  )
  return _without_one_group(rows), _without_one_group(total)


def _attend_rows(
  *heads,
  selection,
  bias,
  implementation,
  return_live_keys,
  return_masking,
  forget_below,
  **settings,
) -> Attended:
  """Runs the chosen implementation over whole rows."""
  name = implementations.choose(
    implementation,
    'selective_attention',
    dtype=heads[0].dtype,
    bias=bias is not None,
    bias_by_distance=isinstance(bias, DistanceBias),
    return_live_keys=return_live_keys,
    return_masking=return_masking,
    constraints=selection.constraints,
    selects=True,
    sizes=(heads[0].shape[-1], selection.query.shape[-1]),
  )
  settings |= dict(selection=selection, bias=bias)
  if name != 'reference':
    settings |= dict(forget_below=forget_below)
    if return_live_keys:
      settings |= dict(return_live_keys=True)
    return Attended(*implementations.FAST[name](*heads, **settings))
  out, memory, masking = reference.selective_attention(*heads, **settings)
  masking = _without_one_group(masking) if return_masking else None
  return Attended(out, memory, masking=masking)


def _without_one_group(masking):
  """Drops the axis of groups if G is 1: [B, 1, ...] to [B, ...]."""
  return masking[:, 0] if masking.shape[1] == 1 else masking


def _check_settings(memory_tau, masking_scale, forget_below, **flags):
  """Raises UserError if a setting has a wrong type or value."""
  if memory_tau is not None:
    name = 'selective_attention.memory_tau'
    expected = 'a positive number or None'
    checks.number(name, memory_tau, expected)
    if not memory_tau > 0:
      raise UserError(f'{name} = {memory_tau!r}: expected {expected}')
  if masking_scale is not None:
    checks.number('selective_attention.masking_scale', masking_scale)
  if forget_below is not None:
    name = 'selective_attention.forget_below'
    expected = 'a number from 0 to below 1, or None'
    checks.number(name, forget_below, expected)
    if not 0 <= forget_below < 1:
      raise UserError(f'{name} = {forget_below!r}: expected {expected}')
  checks.flags('selective_attention', **flags)


def _selecting_heads(heads, head, groups, has_own) -> int | str | tuple:
  """Returns the selecting head, one head of each group, MEAN or PER_HEAD.

  Raises:
    UserError: if the head or the groups do not exist.
  """
  name = 'selective_attention'
  if not is_integer(groups) or groups < 1 or heads % groups:
    raise UserError(
      f'{name}.selection_groups = {groups!r}: expected a divisor of the '
      f'{heads} heads'
    )
  size = heads // groups
  is_number = is_integer(head)
  if head not in (MEAN, PER_HEAD) and not (is_number and 0 <= head < size):
    layout = f'there are {heads} heads'
    layout = layout if groups == 1 else f'{layout} in {groups} groups'
    raise UserError(
      f'{name}.selection_head = {head!r}: expected an integer from 0 to '
      f"{size - 1}, {layout}, or 'mean' or 'per_head'"
    )
  if groups == 1:
    return int(head) if is_number else head
  if has_own or not is_number:
    what = (
      'queries and keys of its own select' if has_own else f'it is {head!r}'
    )
    raise UserError(
      f'{name}.selection_groups = {groups!r}: expected 1 where {what}; groups '
      'are for a number as selection_head'
    )
  return tuple(range(head, heads, size))
