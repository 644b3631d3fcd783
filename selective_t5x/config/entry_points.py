"""Puts the function of each run mode into __main__.

gin files look for it there: like T5X's, they `import __main__ as train_script`.
"""

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

from absl import logging

from selective_t5x.config.reader import Config
from selective_t5x.errors import UserError

# The module and the function of each run mode.
MODULES = {
  'train': ('t5x.train', 'train'),
  'eval': ('t5x.eval', 'evaluate'),
  'infer': ('t5x.infer', 'infer'),
  # With a --topology the suite's own, of the files of a training run.
  'precompile': ('t5x.precompile', 'precompile'),
}
# The others are imported for their own runs alone.
_ALWAYS = ('train', 'eval', 'infer')
# What T5X's files of inference find there besides, from the same module.
_OF_INFER = ('create_task_from_tfexample_file', 'write_inferences_to_file')
PRECOMPILE = 'precompile'
RUN_MODES = tuple(MODULES)


def run_mode_of(config: Config) -> str:
  """Returns the run mode whose function gets its model from gin files.

  Raises:
    UserError: there is none, or more than one.
  """
  modes = {mode: place for mode in MODULES if (place := where(config, mode))}
  if len(modes) == 1:
    return next(iter(modes))
  places = ', '.join(f'{mode} ({where})' for mode, where in modes.items())
  raise UserError(
    f'no --run_mode: expected one of {", ".join(RUN_MODES)}; the gin files '
    f'configure {places or "none of them"}'
  )


def where(config: Config, run_mode: str) -> str:
  """Returns the place where a mode's function gets its model, or ''."""
  name = f'__main__.{MODULES[run_mode][1]}'
  places = (
    binding.where
    for binding in config.bindings
    if binding.full_selector == name and binding.name == 'model'
  )
  return next(places, '')


def register(run_mode: str | None = None) -> dict[str, Callable[..., Any]]:
  """Puts the functions of modes into __main__; returns {mode: function}.

  With several, the files of a training run also load for its evaluation.

  Args:
    run_mode: a mode to register beside train, eval and infer.
  """
  modes = dict.fromkeys([*_ALWAYS, *([run_mode] if run_mode else [])])
  entries = {mode: _register(mode) for mode in modes}
  infer = importlib.import_module('t5x.infer')
  for name in _OF_INFER:
    setattr(sys.modules['__main__'], name, getattr(infer, name))
  _register_models()
  return entries


@functools.cache
def _register(run_mode: str) -> Callable[..., Any]:
  """Puts the function of one mode into __main__ and returns it."""
  import gin

  module, name = MODULES[run_mode]
  entry = getattr(importlib.import_module(module), name)
  main = sys.modules['__main__']
  own = getattr(main, name, None)
  if getattr(own, '__module__', None) == '__main__':
    logging.warning(
      '__main__.%s: gin files look for that of %s there, which replaces the '
      "script's own; give that one another name",
      name,
      module,
    )
  setattr(main, name, entry)
  gin.register(entry, '__main__')
  return entry


@functools.cache
def _register_models() -> None:
  """Registers T5X's model classes for bindings of the command line.

  T5X's guides bind their parameters there, but no gin file of the suite imports
  them: the suite's classes inherit these bindings, see `bindings.inherited`.
  """
  import gin

  from t5x import models

  for cls in (models.EncoderDecoderModel, models.DecoderOnlyModel):
    # gin knows it as a method of the class once the class is registered. Both
    # methods have one name, so each is registered in its class.
    method = cls.predict_batch_with_aux
    gin.register(method, module=f'{models.__name__}.{cls.__name__}')
    gin.register(cls, module=models.__name__)
