"""Selection: the scores by which queries mask keys, and their sum F.

Source: Leviathan, Kalman, Matias, "Selective Attention Improves Transformer",
arXiv 2410.02703, section 3.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped

from selective_t5x.attention import checks, masks
from selective_t5x.attention.arrays import Array, Scalar
from selective_t5x.attention.distance_bias import DistanceBias, four_axes

# Queries per block where one row of F is computed.
_ROWS = 128

# Values of `head` beside the number of one head.
MEAN, PER_HEAD = 'mean', 'per_head'


class Constraints(NamedTuple):
  """Limits of selection; the paper has all three.

  Attributes:
    relu: negative logits mask nothing. Without it a score is the logit itself
      and F may be negative, which draws attention to a key.
    protect_bos: nobody masks the first token of a segment, <BOS>.
    protect_self: a token does not mask itself for later queries. (It never does
      for its own query, since selection acts on later queries only.)
  """

  relu: bool = True
  protect_bos: bool = True
  protect_self: bool = True


# The constraints of the paper.
ALL = Constraints()


class Selection(NamedTuple):
  """The G selecting heads, each of which masks keys for H / G heads.

  Their logits are scale * <query_i, key_j> + bias. For a head of the model they
  are its slice of queries and keys.

  Attributes:
    query: [B, N, G, E]. Head h of H reads the masking of g = h // (H / G).
    key: [B, N, G, E].
    scale: multiplies the products.
    bias: broadcasts to [B, G, N, N], or a DistanceBias; None for no bias.
    head: which head or heads of the model query, key and scale come from: a
      number, several, MEAN or PER_HEAD. Lets a caller that has the products of
      all heads reuse them. None if they come from no head.
    constraints: what selection may not mask.
  """

  query: Float[Array, 'B N G E']
  key: Float[Array, 'B N G E']
  scale: Scalar
  bias: Float[Array, '...'] | DistanceBias | None = None
  head: int | str | tuple[int, ...] | None = None
  constraints: Constraints = ALL


def of_heads(
  logits: Float[Array, 'B H Q N'], head: int | str | tuple[int, ...]
) -> Float[Array, 'B G Q N']:
  """Takes the selecting heads of all heads: [B, H, Q, N] to [B, G, Q, N]."""
  if head == MEAN:
    return jnp.mean(logits, axis=1, keepdims=True)
  return logits if isinstance(head, str) else _heads(logits, head, axis=1)


def _heads(x: Array, head: int | tuple[int, ...], axis: int) -> Array:
  """Slices one head, or several equally spaced ones, from an axis."""
  first, *others = head if isinstance(head, tuple) else (head,)
  step = others[0] - first if others else 1
  last = others[-1] if others else first
  return jax.lax.slice_in_dim(x, first, last + 1, step, axis)


def select(
  query: Float[Array, 'B Q H D'],
  key: Float[Array, 'B N H D'],
  *,
  head: int | str | tuple[int, ...],
  scale: Scalar,
  bias: Float[Array, '...'] | DistanceBias | None = None,
  own: tuple[Float[Array, 'B Q G E'], Float[Array, 'B N G E']] | None = None,
  masking_scale: Scalar | None = None,
  constraints: Constraints = ALL,
) -> Selection:
  """Builds the Selection of attention heads, or of separate projections.

  The mean of the heads' logits is computed as one head, which has all heads
  side by side, divided by H.

  Args:
    query: [B, Q, H, D].
    key: [B, N, H, D].
    head: a head, several equally spaced ones, MEAN or PER_HEAD.
    scale: multiplies the logits.
    bias: added to the logits, broadcasts to [B, H, Q, N], or a DistanceBias;
      None for no bias. The bias of `head` is taken.
    own: separate queries [B, Q, G, E] and keys [B, N, G, E], already scaled,
      which select in place of the heads. G divides H. The bias is still that of
      `head`.
    masking_scale: multiplies all scores, and so F; zero or more, None for 1. It
      is applied to the queries, since relu(c x) = c relu(x).
    constraints: what selection may not mask.
  """
  heads, size = query.shape[2:]
  bias = _bias_of_heads(bias, head)
  if own is not None:
    (query, key), scale, head = own, 1.0, None
  elif head == MEAN:
    query, key = (
      x.reshape(*x.shape[:2], 1, heads * size) for x in (query, key)
    )
    scale /= heads
  elif not isinstance(head, str):
    query, key = (_heads(x, head, axis=2) for x in (query, key))
  if masking_scale is not None:
    query = query * jnp.asarray(masking_scale, query.dtype)
    if isinstance(bias, DistanceBias):
      bias = bias.map(lambda values: values * masking_scale)
    elif bias is not None:
      bias = bias * masking_scale
    head = None
  return Selection(query, key, scale, bias, head, constraints)


def _bias_of_heads(bias, head):
  """Returns the bias of the selecting heads: [B or 1, G or 1, ...]."""
  if bias is None:
    return None
  if isinstance(bias, DistanceBias):
    if bias.values.shape[0] == 1:
      return bias
    return bias.map(lambda x: of_heads(x[None, :, None], head)[0, :, 0])
  bias = four_axes(bias)
  return bias if bias.shape[1] == 1 else of_heads(bias, head)


def spread(
  masking: Float[Array, 'B G *rest'], heads: int
) -> Float[Array, 'B H_or_1 *rest']:
  """Repeats F for the heads that share it.

  Args:
    masking: f32[B, G, ...].
    heads: H.

  Returns:
    f32[B, H, ...], or [B, 1, ...] where all heads read the same.
  """
  groups = masking.shape[1]
  return (
    masking if groups == 1 else jnp.repeat(masking, heads // groups, axis=1)
  )


def selection_scores(
  head_logits: Float[Array, 'B N N'],
  *,
  segment_ids: Shaped[Array, '#B N'] | None = None,
  constraints: Constraints = ALL,
) -> Float[Array, 'B N N']:
  """Returns the selection scores: how much each query masks each key.

  S[b, i, j] = relu(A[b, i, j]) where j < i (a token never masks itself), both
  in one segment, neither padding, and j not the first of its segment (<BOS> is
  never masked); 0 elsewhere.

  Args:
    head_logits: f32[B, N, N], logits of the selection head before any mask;
      axis 1 is the query.
    segment_ids: i32[B, N], 0 for padding; None for one segment.
    constraints: what selection may not mask.

  Returns:
    [B, N, N] of head_logits' dtype, zero or more with relu.
  """
  length = head_logits.shape[-1]
  may_mask = masks.visible(length, segment_ids)
  if constraints.protect_self:
    may_mask &= ~jnp.eye(length, dtype=bool)
  if constraints.protect_bos:
    may_mask &= ~masks.first_in_segment(length, segment_ids)[:, None, :]
  scores = jax.nn.relu(head_logits) if constraints.relu else head_logits
  return jnp.where(may_mask, scores, 0)


def masking_matrix(
  head_logits: Array,
  *,
  segment_ids: Array | None = None,
  constraints: Constraints = ALL,
) -> Float[Array, 'B N N']:
  """Returns F, the sum of the selection scores of all earlier queries.

  F[b, i, j] = sum_{k < i} S[b, k, j], S from `selection_scores`: the selection
  of a token acts on strictly later queries. Differs from the paper: rows may be
  packed; each segment protects its own first token and has its own sums.

  Args:
    head_logits: f32[B, N, N], logits of the selection head before any mask;
      axis 1 is the query. Other float types are computed in float32 at least.
    segment_ids: i32[B, N], 0 for padding, each run of equal ids a segment;
      None for one segment.
    constraints: what selection may not mask; by default all of the paper's.

  Returns:
    f32[B, N, N], zero or more with relu; 0 wherever the query may not see
    the key.

  Raises:
    ValueError: if head_logits is not [B, N, N] or segment_ids not [B, N].
  """
  shape = head_logits.shape
  if len(shape) != 3 or shape[1] != shape[2]:
    raise ValueError(
      f'masking_matrix: head_logits must be [B, N, N], got {list(shape)}'
    )
  if segment_ids is not None:
    checks.token_ids('segment_ids', segment_ids, head_logits)
  dtype = jnp.promote_types(head_logits.dtype, jnp.float32)
  scores = selection_scores(
    head_logits.astype(dtype), segment_ids=segment_ids, constraints=constraints
  )
  # Strictly later queries: shift the inclusive sum by one. (Subtracting a
  # query's own score from it instead would cancel digits.)
  summed = jnp.cumsum(scores, axis=1)
  shifted = jnp.pad(summed[:, :-1], ((0, 0), (1, 0), (0, 0)))
  # Queries of later segments would inherit the sums of earlier ones.
  return jnp.where(masks.visible(shape[1], segment_ids), shifted, 0)


def masking_at(
  selection: Selection, row: Int[Array, ' B']
) -> Float[Array, 'B G N']:
  """Returns one row of F: how much all earlier queries mask each key.

  F is never materialised: the scores of _ROWS queries are summed at a time.

  Args:
    selection: its rows are one segment each, without padding.
    row: i32[B], 0 <= row < N.

  Returns:
    f32[B, G, N].
  """
  batch, length, groups, _ = selection.key.shape
  blocks = -(-length // _ROWS)
  padding = blocks * _ROWS - length
  query = jnp.pad(selection.query, ((0, 0), (0, padding), (0, 0), (0, 0)))
  add_bias = _row_biases(selection.bias, padding)
  relu, protect_bos, protect_self = selection.constraints
  dtype = jnp.promote_types(query.dtype, jnp.float32)
  keys = jnp.arange(length)

  def add(block, total):
    first = block * _ROWS
    queries = first + jnp.arange(_ROWS)[:, None]
    logits = selection.scale * jnp.einsum(
      'bqge,bkge->bgqk',
      jax.lax.dynamic_slice_in_dim(query, first, _ROWS, 1).astype(dtype),
      selection.key.astype(dtype),
      precision=jax.lax.Precision.HIGHEST,
    )
    logits = add_bias(logits, first)
    # As in selection_scores; only queries before the row act on it.
    may_mask = (queries < row[:, None, None]) & (keys <= queries)
    if protect_self:
      may_mask &= keys != queries
    if protect_bos:
      may_mask &= keys > 0
    scores = jax.nn.relu(logits) if relu else logits
    return total + jnp.sum(jnp.where(may_mask[:, None], scores, 0), axis=2)

  zeros = jnp.zeros((batch, groups, length), dtype)
  return jax.lax.fori_loop(0, blocks, add, zeros)


def _row_biases(bias, padding):
  """Returns a function that adds the bias to the logits of _ROWS queries.

  Args:
    bias: that of a Selection.
    padding: how many queries follow those that the bias has.

  Returns:
    A function of f32[B, G, _ROWS, N] and of the first query, i32[].
  """
  if bias is None:
    return lambda logits, first: logits
  if isinstance(bias, DistanceBias):

    def add(logits, first):
      queries = first + jnp.arange(_ROWS)[:, None]
      return logits + bias.at(jnp.arange(logits.shape[3]) - queries)

    return add
  if bias.shape[2] == 1:
    return lambda logits, first: logits + bias
  padded = jnp.pad(bias, ((0, 0), (0, 0), (0, padding), (0, 0)))
  return lambda logits, first: (
    logits + jax.lax.dynamic_slice_in_dim(padded, first, _ROWS, 2)
  )
