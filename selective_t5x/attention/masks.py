"""Visibility masks of a row: causal, same segment, not padding."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int, Shaped

from selective_t5x.attention.arrays import Array


def check_ids(name: str, ids: Shaped[Array, '...']) -> None:
  """Raises ValueError unless ids are integers or booleans.

  Args:
    name: the argument's name, for the message.
    ids: any shape.
  """
  dtype = getattr(ids, 'dtype', None)
  if dtype is None or not (
    jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)
  ):
    got = type(ids).__name__ if dtype is None else dtype
    raise ValueError(
      f'attention: {name} must be an array of integers, got {got}'
    )


def visible(
  length: int,
  segment_ids: Shaped[Array, 'B N'] | None = None,
  prefix: Shaped[Array, 'B N'] | None = None,
) -> Bool[Array, '#B N N']:
  """Returns which keys a query may see, before selection masks any.

  Args:
    length: N, the number of tokens in a row.
    segment_ids: i32[B, N], 0 for padding, else each run of equal ids is a
      segment; None for one segment.
    prefix: i32[B, N], 1 for tokens that see each other; None for no token.

  Returns:
    bool[B, N, N] (bool[1, N, N] without segment_ids and prefix), axis 1 the
    query: true where key j <= query i or both are in the prefix, both are in
    one segment, and neither is padding.

  Raises:
    ValueError: if segment_ids are not integers.
  """
  slots = jnp.arange(length)
  start = segment_starts(length, segment_ids)
  seen = (start[:, :, None] <= slots) & (slots <= slots[:, None])
  if prefix is None:
    return seen
  in_prefix = (prefix != 0) & (start < length)
  seen |= (
    in_prefix[:, :, None]
    & in_prefix[:, None, :]
    & (start[:, :, None] == start[:, None, :])
  )
  return seen


def segment_starts(
  length: int, segment_ids: Shaped[Array, 'B N'] | None = None
) -> Int[Array, '#B N']:
  """Returns where each token's segment starts; it sees no earlier key.

  Args:
    length: N, the number of tokens in a row.
    segment_ids: as in `visible`.

  Returns:
    i32[B, N], N for padding, which sees no key at all; zeros, i32[1, N],
    without segment_ids.

  Raises:
    ValueError: if segment_ids are not integers.
  """
  if segment_ids is None:
    return jnp.zeros((1, length), jnp.int32)
  slots = jnp.arange(length, dtype=jnp.int32)
  first = first_in_segment(length, segment_ids)
  start = jax.lax.cummax(jnp.where(first, slots, 0), axis=1)
  return jnp.where(segment_ids != 0, start, length)


def first_in_segment(
  length: int, segment_ids: Shaped[Array, 'B N'] | None = None
) -> Bool[Array, '#B N']:
  """Returns which tokens start a segment; they hold <BOS>.

  Args:
    length: N, the number of tokens in a row.
    segment_ids: as in `visible`.

  Returns:
    bool[B, N], bool[1, N] without segment_ids.

  Raises:
    ValueError: if segment_ids are not integers.
  """
  if segment_ids is None:
    return (jnp.arange(length) == 0)[None]
  check_ids('segment_ids', segment_ids)
  changes = segment_ids[:, 1:] != segment_ids[:, :-1]
  return jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)


def position_in_segment(
  length: int, segment_ids: Shaped[Array, 'B N'] | None = None
) -> Int[Array, '#B N']:
  """Returns i32[B, N], the positions of tokens in their segment, from 0.

  Args:
    length: N, the number of tokens in a row.
    segment_ids: as in `visible`; None gives i32[1, N]. Padding is counted like
      a segment.

  Raises:
    ValueError: if segment_ids are not integers.
  """
  slots = jnp.arange(length)
  first = first_in_segment(length, segment_ids)
  return slots - jax.lax.cummax(jnp.where(first, slots, 0), axis=1)


def zero_padding(
  x: Shaped[Array, 'B N *rest'], segment_ids: Shaped[Array, 'B N'] | None
) -> Shaped[Array, 'B N *rest']:
  """Zeroes the padding rows of an array and of its gradient.

  It selects and does not multiply: 0 * NaN is NaN, and padding must never reach
  a live slot.

  Args:
    x: [B, N, ...].
    segment_ids: i32[B, N], 0 for padding; None where there is no padding.

  Returns:
    x with zeros where segment_ids is 0.

  Raises:
    ValueError: if segment_ids are neither integers nor booleans.
  """
  if segment_ids is None:
    return x
  check_ids('segment_ids', segment_ids)
  live = (segment_ids != 0).reshape(segment_ids.shape + (1,) * (x.ndim - 2))
  return jnp.where(live, x, jnp.zeros((), x.dtype))
