"""Listed keys of the TPU kernels: their way there, and their gradients' back.

Shapes: B batch, H heads, G selection heads, N length, C listed keys; P is H, G
or a multiple of G.
"""

from typing import Any, NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl

from selective_t5x.attention.tpu.plan import Plan
from selective_t5x.attention.tpu.reads import Reads


class Listed(NamedTuple):
  """Listed keys, as arrays or as blocks; see `reads`.

  Attributes:
    key: [B, H, C, D].
    value: [B, H, C, D].
    selection_key: [B, G, C, E].
    position: i32[B, G, 1, C], the numbers of the keys, then N.
    sums: f32[B, G, T, 1, C], see `forward.Inputs`.
  """

  key: Any
  value: Any
  selection_key: Any
  position: Any
  sums: Any


def listed(plan: Plan, reads: Reads, inputs) -> Listed | None:
  """Copies the listed keys, tile by tile as far as there are any.

  Args:
    plan: the plan of the call.
    reads: which they are; None without tables.
    inputs: `forward.Inputs` with the sums.

  Returns:
    What is past the last tile is never written, nor read. None without lists.
  """
  if reads.order is None:
    return None
  sources = (
    inputs.key,
    inputs.value,
    inputs.selection_key,
    # The sums of a key over the blocks are a row, too.
    inputs.sums[:, :, :, 0].swapaxes(2, 3),
  )
  size = plan.block.key

  def copy(tile, copies):
    order = _tile(reads.order, tile, size)
    return tuple(
      lax.dynamic_update_slice_in_dim(x, _taken(rows, order), tile * size, 2)
      for x, rows in zip(copies, sources, strict=True)
    )

  key, value, selection_key, of_keys = lax.fori_loop(
    0, reads.tiles, copy, _unwritten(plan, sources)
  )
  return Listed(
    key,
    value,
    selection_key,
    reads.order[:, :, None],
    of_keys.swapaxes(2, 3)[:, :, :, None],
  )


def _unwritten(plan, sources):
  """Returns arrays [B, P, C, ...] that nothing was written to, nor zeros."""
  length = plan.lists * plan.block.key
  shapes = tuple(
    jax.ShapeDtypeStruct((*x.shape[:2], length, *x.shape[3:]), x.dtype)
    for x in sources
  )
  return pl.pallas_call(
    lambda *_: None,
    out_shape=shapes,
    out_specs=tuple(pl.BlockSpec(memory_space=pl.ANY) for _ in shapes),
    name='selective_attention_lists',
    interpret=plan.interpret,
  )()


def _tile(x, tile, size):
  return lax.dynamic_slice_in_dim(x, tile * size, size, axis=2)


def _by_group(x, groups):
  """Returns [B, P, ...] as [B, G, P / G, ...]."""
  return x.reshape(x.shape[0], groups, -1, *x.shape[2:])


def _taken(x, order):
  """Returns the keys of [B, P, N, ...] in order; any number past the last."""

  def take(x, order):
    return x.at[:, order].get(mode='clip')

  rows = jax.vmap(jax.vmap(take))(_by_group(x, order.shape[1]), order)
  return rows.reshape(*x.shape[:2], *rows.shape[3:])


def added(
  plan: Plan,
  reads: Reads,
  in_place: tuple[jax.Array, ...],
  of_list: tuple[jax.Array, ...],
) -> tuple[jax.Array, ...]:
  """Adds what belongs to listed keys to those in place.

  Args:
    plan: the plan of the call.
    reads: which they are.
    in_place: arrays [B, P, N, ...].
    of_list: arrays [B, P, C, ...]; those past the last key do not count.
  """
  size = plan.block.key

  def add(tile, totals):
    order = _tile(reads.order, tile, size)
    return tuple(
      _added(order, x, _tile(values, tile, size))
      for x, values in zip(totals, of_list, strict=True)
    )

  return lax.fori_loop(0, reads.tiles, add, in_place)


def _added(order, x, values):
  def add(x, order, values):
    # N is no key: nothing is added.
    return x.at[:, order].add(values, mode='drop', unique_indices=True)

  groups = order.shape[1]
  total = jax.vmap(jax.vmap(add))(
    _by_group(x, groups), order, _by_group(values, groups)
  )
  return total.reshape(x.shape)
