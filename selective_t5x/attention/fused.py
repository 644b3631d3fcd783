"""What the fused kernels of all chips share: matrix products, and their frame.

The kernels see finite numbers and no padding that matters; what surrounds them
is here.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from selective_t5x.attention import derivatives, masks, nonfinite
from selective_t5x.attention.distance_bias import DistanceBias
from selective_t5x.attention.selection import ALL, Constraints, Selection

# Subtracted from the logits where a query may not see a key. It is larger than
# every logit, and finite, so that a row without any key stays finite.
FAR = 0.7 * float(jnp.finfo(jnp.float32).max)


def product(a, b, *, transpose_a=False, transpose_b=False):
  """Returns the matrix product in float32; a and b have one dtype.

  The products of bfloat16 numbers are exact, and those of float32 numbers are
  float32's, not those of fewer bits which matrix units have by default.
  `jax.default_matmul_precision` does not change this.
  """
  exact = a.dtype == jnp.float32
  contract = ((0 if transpose_a else 1,), (1 if transpose_b else 0,))
  return lax.dot_general(
    a,
    b,
    (contract, ((), ())),
    precision=lax.Precision.HIGHEST if exact else lax.Precision.DEFAULT,
    preferred_element_type=jnp.float32,
  )


def is_array(bias: jax.Array | DistanceBias | None) -> bool:
  """Returns whether a bias is an array, whose gradient is N x N."""
  return not (bias is None or isinstance(bias, DistanceBias))


def unsupported(
  dtype, *, bias: bool, constraints: Constraints = ALL
) -> str | None:
  """Returns which argument no fused kernel supports, or None.

  Args:
    dtype: the dtype of the queries.
    bias: whether the logits or the selection have one that is an array.
    constraints: those of the selection.
  """
  if bias:
    return (
      'its kernels add no bias that is an array, whose gradient is N x N: '
      'expected a DistanceBias'
    )
  if constraints != ALL:
    return "its kernels have the paper's three constraints of selection"
  if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float32):
    return f'its kernels take bfloat16 or float32, these are {jnp.dtype(dtype)}'
  return None


class Call(NamedTuple):
  """The arrays of a call, ready for kernels.

  Attributes:
    tensors: query, key and value, [B, N, H, D], and with selection its query
      and key, [B, N, G, E]: finite, zero in padding.
    start: i32[B, N], see `masks.segment_starts`; None for whole rows.
    segment_ids: those of the call.
    faults: the tokens that are not finite.
  """

  tensors: tuple[jax.Array, ...]
  start: jax.Array | None
  segment_ids: jax.Array | None
  faults: nonfinite.Faults

  def results(self, out, memory):
    """Returns the results of the call from those of the kernels.

    Args:
      out: [B, N, H, D].
      memory: M, f32[B, N]; None without it.
    """
    reached, rows = self.faults.reach(nonfinite.causally(self.start))
    out = nonfinite.mark(masks.zero_padding(out, self.segment_ids), reached)
    if memory is None:
      return out, None
    return out, nonfinite.mark(memory, jnp.any(rows, axis=-1))


def call(
  name: str,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  selection: Selection | None,
  segment_ids: jax.Array | None,
  memory_tau: float | None,
) -> Call:
  """Checks and cleans the arrays of a call.

  Args:
    name: the implementation, for messages.
    query: [B, N, H, D].
    key: [B, N, H, D].
    value: [B, N, H, D].
    selection: what selects; None for plain attention.
    segment_ids: i32[B, N]; None for whole rows.
    memory_tau: tau of M; None without M.

  Raises:
    ValueError: if G does not divide H, or there is memory_tau without
      selection.
  """
  if selection is None and memory_tau is not None:
    raise ValueError(f'{name}: memory_tau needs a selection')
  heads = query.shape[2]
  query, key, value, selection, faults = nonfinite.clean_heads(
    query, key, value, selection, live=segment_ids
  )
  tensors = [query, key, value]
  if selection is not None:
    tensors += [selection.query, selection.key]
    groups = selection.query.shape[2]
    if heads % groups:
      raise ValueError(
        f'{name}: {groups} selection heads do not divide {heads} heads'
      )
  start = None
  if segment_ids is not None:
    start = masks.segment_starts(query.shape[1], segment_ids)
  tensors = derivatives.reverse_mode_alone(tensors, name)
  return Call(tuple(tensors), start, segment_ids, faults)
