"""Who may see whom in a row: causal, same segment, not padding."""

import jax
import jax.numpy as jnp


def visible(
  length: int,
  segment_ids: jax.Array | None = None,
  prefix: jax.Array | None = None,
) -> jax.Array:
  """Tells which keys a query may see before anything is masked by selection.

  Args:
    length: N, the number of tokens in a row.
    segment_ids: i32[B, N], 0 for padding; None for one segment.
    prefix: i32[B, N], 1 for tokens that see each other; None for no token.

  Returns:
    bool[B, N, N] (bool[1, N, N] without segment_ids and prefix), axis 1 the
    query: true where key j <= query i or both are of the prefix, both in one
    segment and neither is padding.
  """
  seen = jnp.tril(jnp.ones((1, length, length), bool))
  if prefix is not None:
    in_prefix = prefix != 0
    seen |= in_prefix[:, :, None] & in_prefix[:, None, :]
  if segment_ids is None:
    return seen
  query_ids, key_ids = segment_ids[:, :, None], segment_ids[:, None, :]
  return seen & (query_ids == key_ids) & (query_ids != 0)


def first_in_segment(
  length: int, segment_ids: jax.Array | None = None
) -> jax.Array:
  """Tells which tokens open a segment, where <BOS> is.

  Args:
    length: N, the number of tokens in a row.
    segment_ids: i32[B, N], each segment contiguous; None for one segment.

  Returns:
    bool[B, N], bool[1, N] without segment_ids.
  """
  if segment_ids is None:
    return (jnp.arange(length) == 0)[None]
  changes = segment_ids[:, 1:] != segment_ids[:, :-1]
  return jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)


def position_in_segment(
  length: int, segment_ids: jax.Array | None = None
) -> jax.Array:
  """Returns i32[B, N], the positions of tokens in their segment, from 0.

  Args:
    length: N, the number of tokens in a row.
    segment_ids: i32[B, N], each segment contiguous; None for one segment, which
      gives i32[1, N]. Padding is counted like a segment.
  """
  slots = jnp.arange(length)
  first = first_in_segment(length, segment_ids)
  return slots - jax.lax.cummax(jnp.where(first, slots, 0), axis=1)


def zero_padding(x: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
  """Zeroes the padding rows of an array and of its gradient.

  A select, not a product: 0 * NaN is NaN, and what lies in a padding slot must
  never reach a live one.

  Args:
    x: [B, N, ...].
    segment_ids: i32[B, N], 0 for padding; None where there is no padding.

  Returns:
    x with zeros where segment_ids is 0.
  """
  if segment_ids is None:
    return x
  live = (segment_ids != 0).reshape(segment_ids.shape + (1,) * (x.ndim - 2))
  return jnp.where(live, x, jnp.zeros((), x.dtype))
