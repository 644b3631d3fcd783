"""Decides whether `import t5x` gives the real T5X or the embedded engine.

The embedded engine is in selective_t5x/engine/, but its modules are only named
t5x.*: a finder on sys.meta_path finds that folder for the name `t5x`. This
keeps gin's registry, pickles and saved configs the same with both engines. The
package t5x has a second folder, t5x_package/t5x/: what T5X's package has beside
its engine, the networks of its examples and its gin files.
"""

import importlib.machinery
import importlib.util
import os
import pathlib
import sys
import types

ENGINE_VARIABLE = 'SELECTIVE_T5X_ENGINE'
_PACKAGE = pathlib.Path(__file__).resolve().parent
_ENGINE_DIR = _PACKAGE / 'engine'
_EXAMPLES_DIR = _PACKAGE / 't5x_package' / 't5x'
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
      submodule_search_locations=[str(_ENGINE_DIR), str(_EXAMPLES_DIR)],
    )


class _RealT5XFinder:
  """Finds the real T5X where the suite's own t5x.py would be found first."""

  def __init__(self, spec: importlib.machinery.ModuleSpec):
    self._spec = spec

  def find_spec(self, name, path=None, target=None):
    """Returns the module spec of the real T5X for the name `t5x`."""
    del path, target
    return self._spec if name == 't5x' else None


class _RefusingFinder:
  """Refuses `import t5x` if the requested engine is not there.

  `import selective_t5x` does not fail yet: the command line imports the package
  before it can report the error in one line.
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

  SELECTIVE_T5X_ENGINE=embedded|t5x forces one. If it is unset or empty, the
  real T5X is used if it can be imported. If it has another value, or names a
  real T5X that does not exist, `import t5x` raises ImportError.

  Raises:
    ImportError: if the variable names the embedded engine after the real T5X
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
  elif forced == 'embedded':
    sys.meta_path.insert(0, _EmbeddedEngineFinder)
  elif 't5x' in sys.modules:
    return
  elif (spec := _real_t5x()) is not None:
    if importlib.util.find_spec('t5x').origin != spec.origin:
      sys.meta_path.insert(0, _RealT5XFinder(spec))
  elif forced == 't5x':
    reason = f'{ENGINE_VARIABLE}=t5x, but there is none here. {_HOW_TO_GET_T5X}'
    sys.meta_path.insert(0, _RefusingFinder(reason))
  else:
    sys.meta_path.insert(0, _EmbeddedEngineFinder)


def _real_t5x() -> importlib.machinery.ModuleSpec | None:
  """Returns the module spec of the real T5X, or None if it is not here."""
  for finder in sys.meta_path:
    is_path = finder is importlib.machinery.PathFinder
    for path in [[entry] for entry in sys.path] if is_path else [None]:
      spec = finder.find_spec('t5x', path)
      # It is a package. A folder that happens to be named t5x, e.g. a git
      # clone, has no origin; the suite's own t5x.py is a module.
      if spec and spec.submodule_search_locations and spec.origin:
        return spec
  return None


def of_the_embedded_engine(name: str) -> types.ModuleType:
  """Returns a module of the embedded engine, also if the real T5X is used.

  The module is loaded under another name, so it must not import the engine.
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
