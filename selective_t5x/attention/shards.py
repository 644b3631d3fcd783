"""Runs attention on each device's own rows and heads.

XLA can split plain JAX by itself. But where one head selects for heads on
several devices, it exchanges tiles of logits and of F's gradient, O(N * N)
numbers per row. Here every device gets the selecting queries and keys, O(N),
and computes F itself; their gradients are summed.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from selective_t5x.attention import mesh
from selective_t5x.attention.distance_bias import DistanceBias, four_axes


def over_mesh(attention: Callable[..., Any]) -> Callable[..., Any]:
  """Wraps an implementation, which then is split over a mesh of devices.

  Args:
    attention: has the arguments and results of `blocked.attention`; `levels`,
      which only that one has, are passed on where there are some.
  """

  @functools.wraps(attention)
  def attend(
    query,
    key,
    value,
    *,
    selection,
    bias,
    segment_ids,
    memory_tau,
    levels=None,
    return_live_keys=False,
    **settings,
  ):
    settings['memory_tau'] = memory_tau
    if return_live_keys:
      settings['return_live_keys'] = True
    batch, _, heads, _ = query.shape
    split = mesh.split(batch, heads)
    if split is None:
      return attention(
        query,
        key,
        value,
        selection=selection,
        bias=bias,
        segment_ids=segment_ids,
        **_present(levels=levels),
        **settings,
      )
    operands = {
      'heads': tuple(x.swapaxes(1, 2) for x in (query, key, value)),
      'bias': _operand(bias),
      'ids': None if segment_ids is None else segment_ids[:, None],
      'levels': None if levels is None else levels.swapaxes(1, 2),
      'selection': None,
    }
    if selection is not None:
      # Where heads on several devices share one, each device gets a copy.
      groups = selection.query.shape[2]
      copies = math.lcm(groups, split.shards) // groups
      operands['selection'] = tuple(
        x if x is None or x.shape[1] == 1 < groups else jnp.repeat(x, copies, 1)
        for x in (
          selection.query.swapaxes(1, 2),
          selection.key.swapaxes(1, 2),
          _operand(selection.bias),
        )
      )

    def on_a_device(operands):
      selects = None
      if selection is not None:
        query, key, own_bias = operands['selection']
        selects = selection._replace(
          query=query.swapaxes(1, 2),
          key=key.swapaxes(1, 2),
          bias=_bias_like(selection.bias, own_bias),
          head=None,
        )
      ids, levels = operands['ids'], operands['levels']
      levels = None if levels is None else levels.swapaxes(1, 2)
      out, *counts = attention(
        *(x.swapaxes(1, 2) for x in operands['heads']),
        selection=selects,
        bias=_bias_like(bias, operands['bias']),
        segment_ids=None if ids is None else ids[:, 0],
        **_present(levels=levels),
        **settings,
      )
      return out.swapaxes(1, 2), *(x[:, None] for x in counts if x is not None)

    has_counts = [memory_tau is not None] + [True] * return_live_keys
    out, *counts = split.run(
      on_a_device, operands, (True,) * (1 + sum(has_counts))
    )
    # M and the live keys: devices with different heads have different
    # selections, or the same one.
    counts = iter([jnp.mean(x, axis=1) for x in counts])
    return out.swapaxes(1, 2), *(
      next(counts) if x else None for x in has_counts
    )

  return attend


def full_over_mesh(attention: Callable[..., Any]) -> Callable[..., Any]:
  """Wraps a bidirectional implementation likewise.

  Args:
    attention: has the arguments and results of `blocked_full.attention`.
  """

  @functools.wraps(attention)
  def attend(query, key, value, *, bias, query_ids, key_ids, **settings):
    split = mesh.split(query.shape[0], query.shape[2])
    if split is None:
      return attention(
        query,
        key,
        value,
        bias=bias,
        query_ids=query_ids,
        key_ids=key_ids,
        **settings,
      )

    def on_a_device(operands):
      heads, own_bias, ids = operands
      out = attention(
        *(x.swapaxes(1, 2) for x in heads),
        bias=_bias_like(bias, own_bias),
        query_ids=ids[0][:, 0],
        key_ids=ids[1][:, 0],
        **settings,
      )
      return out.swapaxes(1, 2)

    heads = tuple(x.swapaxes(1, 2) for x in (query, key, value))
    ids = (query_ids[:, None], key_ids[:, None])
    out = split.run(on_a_device, (heads, _operand(bias), ids), True)
    return out.swapaxes(1, 2)

  return attend


def _present(**arguments):
  return {name: x for name, x in arguments.items() if x is not None}


def _operand(bias):
  """Returns a bias as an array whose axis 1 is that of the heads."""
  if isinstance(bias, DistanceBias):
    return bias.values[None]
  return None if bias is None else four_axes(bias)


def _bias_like(bias, operand):
  """Returns what an operand of `_operand` stands for on one device."""
  if isinstance(bias, DistanceBias):
    return bias.map(lambda _: operand[0])
  return operand
