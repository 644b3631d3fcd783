"""Tokens that are not finite reach the queries that see them, and no others.

A product of weights and values multiplies every value, those of weight zero
too, and 0 * NaN is NaN: a NaN in one token would reach earlier queries and
other segments, and so would its gradient. Here what is not finite is zeroed
before attention, with its gradient, and what has seen it is NaN afterwards.

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
    key: bool[B, N, H], in their key or in their value.
    selection: bool[B, N, G], in what selects; None where nothing does.
  """

  query: jax.Array
  key: jax.Array
  selection: jax.Array | None = None

  def reach(
    self, sees: Callable[[jax.Array, bool], jax.Array]
  ) -> tuple[jax.Array, jax.Array | None]:
    """Returns what the faults reach.

    Args:
      sees: of faults bool[B, N, .] and of whether those of earlier tokens alone
        count (a selection acts on later queries): which queries see one.

    Returns:
      bool[B, N, H], the outputs; bool[B, N, G], the rows of F, or None.
    """
    out = self.query | sees(self.key, False)
    if self.selection is None:
      return out, None
    masking = sees(self.selection, True)
    return out | per_head(masking, out.shape[2]), masking


def per_head(groups: jax.Array, heads: int) -> jax.Array:
  """Gives each of H heads what its selection head has, [..., G] to [..., H]."""
  return jnp.repeat(groups, heads // groups.shape[-1], axis=-1)


def clean(
  *arrays: jax.Array, live: jax.Array | None = None
) -> tuple[list[jax.Array], jax.Array]:
  """Zeroes padding and what is not finite, and with them their gradients.

  Args:
    *arrays: [B, N, G, D] each.
    live: int or bool[B, N], 0 for padding; None where there is none.

  Returns:
    The arrays, zeros in every token that is not finite in one of them, and
    which these are, bool[B, N, G], padding not among them.
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
  """Zeroes padding and what is not finite in what attends and what selects.

  Args:
    query: [B, N, H, D].
    key: [B, N, H, D].
    value: [B, N, H, D].
    selection: a `selection.Selection`; None where nothing selects.
    live: as of `clean`.

  Returns:
    query, key, value, selection, and a `Faults`.
  """
  (query,), of_query = clean(query, live=live)
  (key, value), of_key = clean(key, value, live=live)
  faults = Faults(of_query, of_key)
  if selection is not None:
    selects, of_selection = clean(selection.query, selection.key, live=live)
    selection = selection._replace(query=selects[0], key=selects[1])
    faults = faults._replace(selection=of_selection)
  return query, key, value, selection, faults


def causally(
  first: jax.Array | None,
) -> Callable[[jax.Array, bool], jax.Array]:
  """Returns the `sees` of queries that see all from one slot to their own.

  Takes time and memory of O(N).

  Args:
    first: i32[B or 1, N], the slot, as of `masks.segment_starts`; None for 0.
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
  """Returns the `sees` of any pattern.

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


def mark(x: jax.Array, reached: jax.Array) -> jax.Array:
  """Returns x, NaN where reached, which has as many axes at least in front.

  An addition, so that the gradient of what is NaN is not lost.
  """
  reached = reached.reshape(reached.shape + (1,) * (x.ndim - reached.ndim))
  return x + jnp.where(reached, jnp.nan, 0).astype(x.dtype)
