"""Chooses the implementation of attention that runs."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from selective_t5x.attention import (
  blocked,
  blocked_full,
  fused,
  reference,
  shards,
)
from selective_t5x.attention.distance_bias import DistanceBias
from selective_t5x.attention.gpu import cudnn, full, hopper
from selective_t5x.attention.gpu import kernels as pallas_gpu
from selective_t5x.attention.mesh import platform
from selective_t5x.attention.selection import ALL
from selective_t5x.attention.tpu import kernels as pallas_tpu
from selective_t5x.errors import UserError, did_you_mean

# (query, key, value, *, selection, scale, bias, segment_ids, memory_tau) ->
# (out, M), as in blocked.attention. The first one that can run is preferred.
FAST: Mapping[str, Callable[..., Any]] = {
  'pallas_tpu': pallas_tpu.attention,
  'cudnn': shards.over_mesh(cudnn.attention),
  'pallas_gpu': shards.over_mesh(pallas_gpu.attention),
  'blocked': shards.over_mesh(blocked.attention),
  'hopper_gpu': shards.over_mesh(hopper.attention),
}
# Those of bidirectional attention, with the arguments and results of
# `blocked_full.attention`.
FULL: Mapping[str, Callable[..., Any]] = {
  'reference': reference.full_attention,
  'pallas_gpu': shards.full_over_mesh(full.attention),
  'blocked': blocked_full.attention,
}
# None never picks these: they have not run on the hardware that they are for.
_BY_NAME_ALONE = ('hopper_gpu',)


# The most queries whose logits with all keys are written out: a few blocks.
_SHORT = 512


def choose(
  implementation: str | None, caller: str, *, dtype=jnp.float32, **needs: Any
) -> str:
  """Returns the name of the implementation to run, and logs each choice once.

  None picks a fast implementation that supports the call, else the reference. A
  named one that does not support the call is an error.

  Args:
    implementation: 'reference', a name in FAST, or None.
    caller: the calling function, for messages.
    dtype: the dtype of the queries.
    **needs: bias, packed (segment ids), prefix, selects, return_live_keys,
      return_masking: whether the call has them; bias_by_distance: whether the
      bias is a DistanceBias; constraints: those of the selection; sizes: D, and
      E with selection.

  Returns:
    'reference' or a name in FAST.

  Raises:
    UserError: if the implementation does not exist or cannot run.
  """
  names = ('reference', *FAST)
  where = _check(implementation, caller, names)
  if implementation is None:
    best = next(
      (
        name
        for name in FAST
        if name not in _BY_NAME_ALONE and not _lacks(name, dtype, needs)
      ),
      names[0],
    )
    lack = _lacks(best, dtype, needs)
    if lack:
      raise UserError(f'{where} = None: no implementation can run: {lack}')
    _log_once(f'{where} = None: {best} runs (on {platform()})')
    return best
  lack = _lacks(implementation, dtype, needs)
  if lack:
    raise UserError(
      f'{where} = {implementation!r} cannot run here: {lack}; expected None, '
      "which picks one that can, or 'reference'"
    )
  return implementation


def choose_full(
  implementation: str | None,
  query: jax.Array,
  bias: jax.Array | DistanceBias | None,
) -> str:
  """Returns the name of the implementation of attention to whole segments.

  Args:
    implementation: a name in FULL, or None.
    query: [B, Q, H, D].
    bias: that of the logits.

  Raises:
    UserError: if the implementation does not exist or cannot run.
  """
  where = _check(implementation, 'full_attention', tuple(FULL))
  _, queries, _, size = query.shape
  lack = pallas_gpu.unsupported(
    query.dtype, bias=fused.is_array(bias), sizes=(size,)
  )
  if implementation == 'pallas_gpu' and lack:
    raise UserError(
      f"{where} = 'pallas_gpu' cannot run here: {lack}; expected None, which "
      "picks one that can, 'blocked' or 'reference'"
    )
  if implementation is not None:
    return implementation
  # A step of decoding has one query, far from a tile of them.
  best = 'blocked' if queries > _SHORT else 'reference'
  if queries > 1 and not lack:
    best = 'pallas_gpu'
  _log_once(f'{where} = None: {best} runs (on {platform()})')
  return best


def _check(implementation, caller, names) -> str:
  """Returns the setting's name; raises UserError if its value is unknown."""
  where = f'{caller}.implementation'
  if implementation is not None and implementation not in names:
    raise UserError(
      f'{where} = {implementation!r}: expected None or one of '
      f'{", ".join(map(repr, names))}{did_you_mean(str(implementation), names)}'
    )
  return where


def _lacks(name: str, dtype, needs: Mapping[str, Any]) -> str | None:
  """Returns which of the needs an implementation does not support, or None."""
  if needs.get('return_live_keys') and name != 'blocked':
    return 'it drops no keys, and return_live_keys asks how many are left'
  if name == 'reference':
    return None
  if needs.get('return_masking'):
    return 'it never holds F, which return_masking needs'
  if needs.get('prefix'):
    return 'it is causal, but the call has a bidirectional prefix'
  bias = needs.get('bias', False)
  array_bias = bias and not needs.get('bias_by_distance', False)
  constraints = needs.get('constraints', ALL)
  if name == 'pallas_tpu':
    return pallas_tpu.unsupported(
      dtype, bias=array_bias, constraints=constraints
    )
  if name == 'pallas_gpu':
    return pallas_gpu.unsupported(
      dtype,
      bias=array_bias,
      constraints=constraints,
      sizes=needs.get('sizes', ()),
    )
  if name == 'hopper_gpu':
    return hopper.unsupported(
      dtype,
      bias=bias,
      selects=needs.get('selects', False),
      constraints=constraints,
      sizes=needs.get('sizes', ()),
    )
  if name == 'cudnn':
    return cudnn.unsupported(
      dtype,
      bias=bias,
      packed=needs.get('packed', False),
      selects=needs.get('selects', False),
      sizes=needs.get('sizes', ()),
    )
  return None


@functools.cache
def _log_once(message: str) -> None:
  logging.info(message)
