"""What the repositories of T5X's users need and is gone or not installed.

- `flax.optim`, which flax removed in 0.6 and prompt-tuning still imports: T5X's
  optimisers have the same classes. `jax.pxla` and
  `jax.random.KeyArray`, which JAX removed: types of arrays in t5x_retrieval.
- Packages without which a repository cannot be imported although the check uses
  nothing of them: placeholders.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Sequence


class _Names(type):
  """The type of classes in which every name is another such class."""

  def __getattr__(cls, name: str):
    if name.startswith('__'):
      raise AttributeError(name)
    return _Names(name, (), {})

  def __sub__(cls, other):
    return 1  # of two constants


class _Placeholder(types.ModuleType):
  """A module in which every name is an empty class."""

  __path__ = ()

  def __getattr__(self, name: str):
    if name.startswith('__'):
      raise AttributeError(name)
    return _Names(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Finds a placeholder for some packages and all of their modules."""

  def __init__(self, packages: Sequence[str]):
    self._packages = set(packages)

  def find_spec(self, name, path=None, target=None):
    """Returns a spec for a module of one of the packages."""
    if name.split('.')[0] not in self._packages:
      return None
    return importlib.machinery.ModuleSpec(name, self, is_package=True)

  def create_module(self, spec):
    """Returns the placeholder."""
    return _Placeholder(spec.name)

  def exec_module(self, module):
    """Does nothing."""


def prepare(placeholders: Sequence[str] = ()) -> None:
  """Makes `t5x` the embedded engine and adds what is missing.

  Args:
    placeholders: packages that get placeholders unless they are installed.
  """
  import flax
  import jax

  import selective_t5x

  assert selective_t5x.engine_name() == 'embedded'
  missing = [p for p in placeholders if importlib.util.find_spec(p) is None]
  if missing:
    print('  placeholders:', ', '.join(missing))
    sys.meta_path.append(_Finder(missing))
  if not hasattr(jax, 'pxla'):
    jax.pxla = types.SimpleNamespace(ShardedDeviceArray=jax.Array)
  if not hasattr(jax.random, 'KeyArray'):
    jax.random.KeyArray = jax.Array
  if importlib.util.find_spec('flax.optim') is None:
    from t5x import optimizers

    optim = types.ModuleType('flax.optim')
    for name in ('MultiOptimizer', 'Optimizer', 'OptimizerDef'):
      setattr(optim, name, getattr(optimizers, name))
    sys.modules['flax.optim'] = flax.optim = optim
