"""Confines non-finite tokens to the queries that see them.

A product of weights and values multiplies every value, also those of weight
zero, and 0 * NaN is NaN. So a NaN in one token, and its gradient, would reach
earlier queries and other segments. Here non-finite tokens and their gradients
are zeroed before attention, and the outputs that see them become NaN after it.

Shapes: B batch, N length, H heads, G selection heads, D head size.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from selective_t5x.attention import masks


class Faults(NamedTuple):
  """Which live tokens are not finite.

  Attributes:
    query: bool[B, N, H].
    key: bool[B, N, H], in the key or the value.
    selection: bool[B, N, G], in selection's query or key; None without one.
  """

  query: jax.Array
  key: jax.Array
  selection: jax.Array | None = None

  def reach(
    self, sees: Callable[[jax.Array, bool], jax.Array]
  ) -> tuple[jax.Array, jax.Array | None]:
    """Returns the outputs and the rows of F that the faults reach.

    Args:
      sees: maps faults, bool[B, N, .], and whether only those of earlier tokens
        count (selection acts on later queries), to the queries that see one.

    Returns:
      bool[B, N, H], the outputs; bool[B, N, G], the rows of F, or None.
    """
    out = self.query | sees(self.key, False)
    if self.selection is None:
      return out, None
    masking = sees(self.selection, True)
    return out | per_head(masking, out.shape[2]), masking


def per_head(groups: jax.Array, heads: int) -> jax.Array:
  """Repeats the entry of each group for its heads: [..., G] to [..., H]."""
  return jnp.repeat(groups, heads // groups.shape[-1], axis=-1)


def clean(
  *arrays: jax.Array, live: jax.Array | None = None
) -> tuple[list[jax.Array], jax.Array]:
  """Zeroes padding and non-finite tokens, and their gradients.

  Args:
    *arrays: [B, N, G, D] each.
    live: int or bool[B, N], 0 for padding; None without padding.

  Returns:
    The arrays, with zeros in each token that is not finite in one of them; and
    bool[B, N, G], which tokens these are, without padding.
  """
  padded = [masks.zero_padding(x, live) for x in arrays]
  finite = jnp.ones(padded[0].shape[:3], bool)
  for x in padded:
    finite &= jnp.all(jnp.isfinite(x), axis=-1)
  zero = [jnp.zeros((), x.dtype) for x in padded]
  cleaned = [
    jnp.where(finite[..., None], x, z)
    for x, z in zip(padded, zero, strict=True)
  ]
  return cleaned, ~finite


def clean_heads(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  selection=None,
  *,
  live: jax.Array | None = None,
):
  """Zeroes padding and non-finite tokens in attention and in selection.

  Args:
    query: [B, N, H, D].
    key: [B, N, H, D].
    value: [B, N, H, D].
    selection: a `selection.Selection`; None without selection.
    live: as in `clean`.

  Returns:
    query, key, value, selection, and a `Faults`.
  """
  (query,), query_faults = clean(query, live=live)
  # Apart, since a finite key may select where its value is not finite.
  (key,), key_faults = clean(key, live=live)
  (value,), value_faults = clean(value, live=live)
  faults = Faults(query_faults, key_faults | value_faults)
  if selection is not None:
    projections, selection_faults = clean(
      selection.query, selection.key, live=live
    )
    selection = selection._replace(query=projections[0], key=projections[1])
    faults = faults._replace(selection=selection_faults)
  return query, key, value, selection, faults


def causally(
  first: jax.Array | None,
) -> Callable[[jax.Array, bool], jax.Array]:
  """Returns `sees` for queries that see all slots from `first` to their own.

  Takes time and memory of O(N).

  Args:
    first: i32[B or 1, N], as in `masks.segment_starts`; None for 0.
  """

  def sees(faults, earlier):
    slots = jnp.arange(faults.shape[1], dtype=jnp.int32)[:, None]
    last = jax.lax.cummax(jnp.where(faults, slots, -1), axis=1)
    if earlier:
      last = jnp.pad(last[:, :-1], ((0, 0), (1, 0), (0, 0)), constant_values=-1)
    return last >= (0 if first is None else first[..., None])

  return sees


def where_visible(
  visible: jax.Array,
) -> Callable[[jax.Array, bool], jax.Array]:
  """Returns `sees` for any pattern.

  Args:
    visible: bool[B or 1, Q, N], which keys a query sees.
  """

  def sees(faults, earlier):
    seen = visible
    if earlier:
      seen &= ~jnp.eye(visible.shape[-1], dtype=bool)
    counts = jnp.matmul(seen.astype(jnp.float32), faults.astype(jnp.float32))
    return counts > 0

  return sees


def by_ids(
  query_ids: jax.Array, key_ids: jax.Array
) -> Callable[[jax.Array, bool], jax.Array]:
  """Returns `sees` for queries that see all keys of their segment.

  XLA compares inside the reduction on GPUs, so no array of Q x N is made there.

  Args:
    query_ids: i32[B, Q], 0 for padding.
    key_ids: i32[B, N], 0 for padding.
  """

  def sees(faults, _):
    same = query_ids[:, :, None, None] == key_ids[:, None, :, None]
    seen = jnp.any(same & faults[:, None], axis=2)
    return seen & (query_ids != 0)[..., None]

  return sees


def mark(x: jax.Array, reached: jax.Array) -> jax.Array:
  """Returns x with NaN where `reached`, whose axes are the first axes of x.

  It adds NaN, so that the gradient of a marked entry is not lost.
  """
  reached = reached.reshape(reached.shape + (1,) * (x.ndim - reached.ndim))
  return x + jnp.where(reached, jnp.nan, 0).astype(x.dtype)
