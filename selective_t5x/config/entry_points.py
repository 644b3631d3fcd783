"""The function of each run mode, where gin files look for it.

They say `import __main__ as train_script`, as T5X's own do.
"""

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

# The module and the function of each run mode.
MODULES = {
  'train': ('t5x.train', 'train'),
  'eval': ('t5x.eval', 'evaluate'),
  'infer': ('t5x.infer', 'infer'),
}
# It compiles what the files say of training.
PRECOMPILE = 'precompile'
RUN_MODES = (*MODULES, PRECOMPILE)


@functools.cache
def register() -> dict[str, Callable[..., Any]]:
  """Puts the functions of all modes into __main__, and returns them by mode.

  All, so that a run can be evaluated with the files it was trained with.
  """
  import gin

  entries = {}
  for run_mode, (module, name) in MODULES.items():
    entries[run_mode] = getattr(importlib.import_module(module), name)
    setattr(sys.modules['__main__'], name, entries[run_mode])
    gin.register(entries[run_mode], '__main__')
  _register_models()
  return entries


def _register_models() -> None:
  """Makes T5X's model classes known to bindings of the command line.

  T5X's guides name them there. No gin file of the suite imports them: its own
  classes take what is bound to them, see `bindings.inherited`.
  """
  import gin

  from t5x import models

  for cls in (models.EncoderDecoderModel, models.DecoderOnlyModel):
    gin.register(cls.predict_batch_with_aux)  # A method, once its class is.
    gin.register(cls, module=models.__name__)
