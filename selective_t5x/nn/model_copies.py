"""Changed copies of T5X models, which share all else with the original."""

import copy
import dataclasses
import functools
import types
from typing import Any

import jax


def with_config(model: Any, **changes: Any) -> Any:
  """Returns a copy of a model with fields of its module's config changed."""
  module = model.module
  changed = copy.copy(model)
  changed.module = module.clone(
    config=dataclasses.replace(module.config, **changes)
  )
  return changed


def with_arguments(model: Any, **arguments: Any) -> Any:
  """Returns a copy whose module is called with these arguments too.

  Args:
    model: T5X's.
    **arguments: of the module's `__call__`, e.g. memory_tau; may be traced.
  """
  changed = copy.copy(model)
  changed.module = types.SimpleNamespace(
    apply=functools.partial(model.module.apply, **arguments)
  )
  return changed


def with_logits(model: Any, logits: jax.Array) -> Any:
  """Returns a copy that has these logits already, and computes none.

  Its `loss_fn` and `score_batch` are the loss and the scores of the logits. A
  mixin calls those of the class after it: `super(Mixin, copy).loss_fn(...)`.

  Args:
    model: T5X's.
    logits: f32[B, N, V], of the batch that the copy will be called with.
  """
  changed = copy.copy(model)
  changed._compute_logits = lambda *_, **__: logits
  return changed
