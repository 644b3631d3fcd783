"""Which implementation of attention runs: a named one, or the best one here."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging

from selective_t5x.attention import blocked
from selective_t5x.errors import UserError, did_you_mean

# (query, key, value, *, selection, scale, bias, segment_ids, memory_tau) ->
# (out, M), as of blocked.attention.
FAST: Mapping[str, Callable[..., Any]] = {'blocked': blocked.attention}


def choose(implementation: str | None, caller: str, **asked: bool) -> str:
  """Names the implementation that runs, and logs a choice once.

  None takes a fast one that can do what is asked, else the reference; a named
  one that cannot is an error.

  Args:
    implementation: 'reference', a name in FAST, or None.
    caller: the function that asks, for messages.
    **asked: bias, prefix, return_masking: whether there is one.

  Returns:
    'reference' or a name in FAST.

  Raises:
    UserError: if there is no such implementation, or it cannot run.
  """
  names = ('reference', *FAST)
  where = f'{caller}.implementation'
  if implementation is None:
    chosen = next((name for name in FAST if not _lacks(name, asked)), names[0])
    _log_once(f'{where} = None: {chosen} runs (on {platform()})')
    return chosen
  if implementation not in names:
    raise UserError(
      f'{where} = {implementation!r}: expected None or one of '
      f'{", ".join(map(repr, names))}{did_you_mean(str(implementation), names)}'
    )
  lack = _lacks(implementation, asked)
  if lack:
    raise UserError(
      f'{where} = {implementation!r} cannot run here: {lack}; expected None, '
      "which picks one that can, or 'reference'"
    )
  return implementation


def platform() -> str:
  """Returns where programs go: the platform of a mesh that is set, or JAX's."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def _lacks(name: str, asked: Mapping[str, bool]) -> str | None:
  """Says what an implementation cannot do of what is asked, or None."""
  if name == 'reference':
    return None
  if asked.get('return_masking'):
    return 'it never holds F, which return_masking asks for'
  if asked.get('prefix'):
    return 'it is causal, and a bidirectional prefix is asked for'
  return None


@functools.cache
def _log_once(message: str) -> None:
  logging.info(message)
