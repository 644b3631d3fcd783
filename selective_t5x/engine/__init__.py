"""The embedded engine: T5X's names, signatures and semantics.

Imported as `t5x` and under no other name, see selective_t5x/engine_finder.py.
"""

import importlib
import types
from typing import TYPE_CHECKING

if __name__ != 't5x':
  raise ImportError(
    f'the embedded engine has one name, t5x, but was imported as {__name__}: '
    'write `import selective_t5x`, then `import t5x`'
  )

if TYPE_CHECKING:  # see __getattr__
  from t5x import checkpoints as checkpointing  # noqa: F401

# T5X imports these modules with its package; here their first use does.
_MODULES = (
  'adafactor',
  'checkpoints',
  'decoding',
  'gin_utils',
  'infer',
  'losses',
  'models',
  'partitioning',
  'state_utils',
  'train_state',
  'trainer',
  'utils',
)


def __getattr__(name: str) -> types.ModuleType:
  """Returns a module that `import t5x` alone makes available in T5X."""
  module = 'checkpoints' if name == 'checkpointing' else name
  if module not in _MODULES:
    raise AttributeError(f'module t5x has no attribute {name!r}')
  return importlib.import_module(f't5x.{module}')
