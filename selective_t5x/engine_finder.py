"""Decides which engine `import t5x` gives: the real T5X or the embedded one.

The embedded engine lives in selective_t5x/engine/ but its modules have one
name only, t5x.*: a finder on sys.meta_path gives that folder for the name
`t5x`. One name keeps gin's registry, pickles and saved configs the same under
both engines.
"""

import importlib.util
import os
import pathlib
import sys
import types

ENGINE_VARIABLE = 'SELECTIVE_T5X_ENGINE'
_ENGINE_DIR = pathlib.Path(__file__).resolve().parent / 'engine'
_HOW_TO_GET_T5X = (
  'T5X is not on PyPI: pip install "selective_t5x[t5x]", or put a checkout of '
  'github.com/google-research/t5x on PYTHONPATH (see docs/engines.md)'
)


class _EmbeddedEngineFinder:
  """Finds the embedded engine under the name `t5x`, and nothing else."""

  @staticmethod
  def find_spec(name, path=None, target=None):
    """Returns the module spec of the embedded engine for the name `t5x`."""
    del path, target
    if name != 't5x':
      return None
    return importlib.util.spec_from_file_location(
      't5x',
      _ENGINE_DIR / '__init__.py',
      submodule_search_locations=[str(_ENGINE_DIR)],
    )


class _RefusingFinder:
  """Turns `import t5x` down where the engine asked for is not there.

  Not at `import selective_t5x` already: the command line imports the package
  before it can say what is wrong in one line.
  """

  def __init__(self, reason: str):
    self._reason = reason

  def find_spec(self, name, path=None, target=None):
    """Raises ImportError for the name `t5x`."""
    del path, target
    if name == 't5x':
      raise ImportError(self._reason)


def install() -> None:
  """Makes `import t5x` resolve to the chosen engine.

  SELECTIVE_T5X_ENGINE=embedded|t5x forces one; unset or empty, the real T5X
  is used where it is importable. Where the variable has another value or names
  the real T5X and there is none, `import t5x` raises ImportError.

  Raises:
    ImportError: the variable asks for the embedded engine after the real T5X
      was imported.
  """
  if _EmbeddedEngineFinder in sys.meta_path:
    return
  forced = os.environ.get(ENGINE_VARIABLE, '')
  if forced not in ('', 'embedded', 't5x'):
    reason = f'{ENGINE_VARIABLE}={forced!r}: expected "embedded" or "t5x"'
    sys.meta_path.insert(0, _RefusingFinder(reason))
  elif forced == 'embedded' and 't5x' in sys.modules:
    raise ImportError(
      f'{ENGINE_VARIABLE}=embedded, but another t5x is already imported; '
      'import selective_t5x first'
    )
  elif forced != 'embedded' and _real_t5x_is_here():
    return
  elif forced == 't5x':
    reason = f'{ENGINE_VARIABLE}=t5x, but there is none here. {_HOW_TO_GET_T5X}'
    sys.meta_path.insert(0, _RefusingFinder(reason))
  else:
    sys.meta_path.insert(0, _EmbeddedEngineFinder)


def _real_t5x_is_here() -> bool:
  if 't5x' in sys.modules:
    return True
  # A folder that happens to be named t5x, a git clone say, has no origin.
  spec = importlib.util.find_spec('t5x')
  return spec is not None and spec.origin is not None


def of_the_embedded_engine(name: str) -> types.ModuleType:
  """Returns a module of the embedded engine, on either engine.

  It has a name of its own, so the module must import nothing of the engine.
  """
  alias = f'selective_t5x_engine_{name}'
  if alias not in sys.modules:
    spec = importlib.util.spec_from_file_location(
      alias, _ENGINE_DIR / f'{name}.py'
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[alias] = module
  return sys.modules[alias]


def engine_name() -> str:
  """Returns the engine that `import t5x` gives: 'embedded' or 't5x'."""
  return 'embedded' if _EmbeddedEngineFinder in sys.meta_path else 't5x'
