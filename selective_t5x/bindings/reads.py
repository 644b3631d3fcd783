"""The bindings of gin's parsed configuration that a run reads, or could read.

gin keeps its parsed bindings, their reads and its registry in private tables;
only this module accesses them.
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gin
from gin.config import ConfigurableReference

# The class whose bindings a class inherits: see inherited.py.
BASES: dict[type, type] = {}
# (scopes joined by '/', the configurable's full name, the parameter). A macro
# is the parameter `value` of gin.macro in the scope of its name.
Key = tuple[str, str, str]
MACRO = 'gin.macro'


def macro_key(name: str) -> Key:
  """Returns the key of a macro."""
  return (name, MACRO, 'value')


def selector(configurable: Callable) -> str | None:
  """Returns gin's full name of a function or class, or None if unknown."""
  entry = gin.config._inverse_lookup(configurable)
  return entry and entry.selector


def matching(name: str) -> str | None:
  """Returns gin's full name for the end of a name, or None if unknown."""
  entry = gin.config._REGISTRY.get_match(name)
  return entry and entry.selector


def bindings() -> dict[Key, Any]:
  """Returns all bindings, gin's references in their values unresolved."""
  return {
    (scope, name, parameter): value
    for (scope, name), values in gin.config._CONFIG.items()
    for parameter, value in values.items()
  }


def short(key: Key) -> str:
  """Returns a key as it is written in a gin file that imports its module."""
  scope, name, parameter = key
  if name == MACRO:
    return scope
  entry = gin.config._REGISTRY[name]
  parts = name.split('.')[-3 if entry.is_method else -2 :]
  return '/'.join(filter(None, [scope, '.'.join([*parts, parameter])]))


def macro_name(value: Any) -> str | None:
  """Returns the name of a macro reference; None for any other value."""
  if isinstance(value, ConfigurableReference):
    if value.configurable.selector == MACRO:
      return '/'.join(value.scopes)
  return None


def entries() -> list[str]:
  """Returns the functions of __main__ that have bindings: what a run calls."""
  main = sys.modules['__main__']
  names = []
  for name in sorted({name for _, name in gin.config._CONFIG}):
    entry = gin.config._REGISTRY[name]
    function = getattr(main, getattr(entry.wrapped, '__name__', ''), None)
    if function in (entry.wrapped, entry.wrapper) and not inspect.isclass(
      function
    ):
      names.append(name)
  return names


def called_by_python() -> list[str]:
  """Returns configurables with bindings that Python code calls directly.

  These are decorated with @gin.configurable: the name in their module is gin's
  version. A function that is registered by a gin file is called only by gin.
  """
  return [
    name
    for name in sorted({name for _, name in gin.config._CONFIG})
    if name != MACRO and _is_exposed(gin.config._REGISTRY[name])
  ]


def reachable(roots: Iterable[str]) -> set[Key]:
  """Returns the bindings that calls of the roots can read.

  Args:
    roots: full names of what is called, in no scope.
  """
  keys = set()
  for name, scopes in reachable_calls(roots):
    for parameter, (scope, _) in _winners(name, scopes).items():
      keys.add((scope, name, parameter))
  return keys | _of_bases(keys)


def reachable_calls(roots: Iterable[str]) -> set[tuple[str, tuple[str, ...]]]:
  """Returns the calls that the roots can make: (full name, scopes).

  It follows references, called or not, in gin's scopes: a function that is
  passed on may be called, in the scope of its reference or in none. A class
  includes its methods, and the base whose bindings it inherits.

  Args:
    roots: full names of what is called, in no scope.
  """
  todo = [(root, ()) for root in roots]
  calls = set()
  while todo:
    call = todo.pop()
    if call in calls:
      continue
    calls.add(call)
    name, scopes = call
    for _, value in _winners(name, scopes).values():
      todo += _called_by(value, scopes)
    todo += [(method, scopes) for method in methods(name)]
    base = _base(name)
    if base:
      todo += [(method, scopes) for method in methods(base)]
      winners = _winners(name, scopes)
      for parameter, (_, value) in _winners(base, scopes).items():
        if parameter not in winners:
          todo += _called_by(value, scopes)
  return calls


def read() -> set[Key]:
  """Returns the bindings that were read since gin's configuration was cleared.

  They are those of gin's operative configuration. A macro is read if a binding
  that was read refers to it.
  """
  keys = set()
  with gin.config._OPERATIVE_CONFIG_LOCK:
    operative = {k: set(v) for k, v in gin.config._OPERATIVE_CONFIG.items()}
  for (scope, name), parameters in operative.items():
    if name == MACRO:
      continue
    scopes = tuple(filter(None, scope.split('/')))
    for parameter, (bound_in, value) in _winners(name, scopes).items():
      if parameter in parameters:
        keys.add((bound_in, name, parameter))
        keys |= _macros(value)
  return keys | _of_bases(keys)


def was_called(name: str) -> bool:
  """Tells whether gin called a function or class of this full name."""
  with gin.config._OPERATIVE_CONFIG_LOCK:
    return any(called == name for _, called in gin.config._OPERATIVE_CONFIG)


def record(base: type, cls: type, inherited: dict[str, Any]) -> None:
  """Records the bindings of base that a call of cls inherits as read.

  It removes the defaults of cls that gin has recorded instead.
  """
  operative, scope = gin.config._OPERATIVE_CONFIG, gin.current_scope_str()
  with gin.config._OPERATIVE_CONFIG_LOCK:
    operative.setdefault((scope, selector(base)), {}).update(inherited)
    for name in inherited:
      operative.get((scope, selector(cls)), {}).pop(name, None)


def references(value: Any) -> Iterator[ConfigurableReference]:
  """Yields gin's references inside a value, including macros."""
  if isinstance(value, ConfigurableReference):
    if value.configurable.selector != 'gin.constant':
      yield value
  elif isinstance(value, dict):
    yield from references([*value.keys(), *value.values()])
  elif isinstance(value, list | tuple | set):
    for item in value:
      yield from references(item)


def followed(value: Any) -> Any:
  """Returns the value behind references to macros."""
  while (
    isinstance(value, ConfigurableReference)
    and value.configurable.selector == MACRO
  ):
    winners = _winners(MACRO, tuple(value.scopes))
    if 'value' not in winners:
      break
    value = winners['value'][1]
  return value


def _called_by(value: Any, scopes: tuple[str, ...]):
  """Yields (full name, scopes) of the calls of a value's references."""
  for reference in references(value):
    name, own_scopes = reference.configurable.selector, tuple(reference.scopes)
    yield name, own_scopes or scopes
    if not reference.evaluate:
      yield name, own_scopes


def _winners(name: str, scopes: tuple[str, ...]) -> dict[str, tuple[str, Any]]:
  """Returns {parameter: (scope, value)} of a call in these scopes."""
  winners = {}
  for i in range(len(scopes) + 1):
    scope = '/'.join(scopes[:i])
    for parameter, value in gin.config._CONFIG.get((scope, name), {}).items():
      winners[parameter] = (scope, value)
  return winners


def _macros(value: Any) -> set[Key]:
  """Returns the keys of the macros in a value, recursively."""
  keys = set()
  for reference in references(value):
    if reference.configurable.selector == MACRO:
      winners = _winners(MACRO, tuple(reference.scopes))
      for parameter, (scope, inner) in winners.items():
        keys.add((scope, MACRO, parameter))
        keys |= _macros(inner)
  return keys


def methods(name: str) -> list[str]:
  """Returns the full names of a class's methods that have bindings."""
  return [
    method
    for _, method in gin.config._CONFIG
    if method.startswith(f'{name}.') and gin.config._REGISTRY[method].is_method
  ]


def _base(name: str) -> str | None:
  """Returns the base whose bindings a class of the suite inherits."""
  wrapped = gin.config._REGISTRY[name].wrapped
  classes = inspect.getmro(wrapped) if inspect.isclass(wrapped) else ()
  base = next((BASES[cls] for cls in classes if cls in BASES), None)
  return base and selector(base)


def _of_bases(keys: set[Key]) -> set[Key]:
  """Returns the bindings of the bases of the classes of keys.

  A class inherits them, or its own are equal: except for `module`, other
  values are refused, see inherited.py.
  """
  pairs = [(selector(cls), selector(base)) for cls, base in BASES.items()]
  everything = bindings()
  return {
    key
    for class_name, base in pairs
    if class_name and base and any(k[1] == class_name for k in keys)
    for key in everything
    if key[1] == base
    if key[2] != 'module' or ('', class_name, 'module') not in everything
  }


def _is_exposed(configurable) -> bool:
  """Tells whether Python code that calls its name calls gin's version."""
  wrapped = configurable.wrapped
  module = sys.modules.get(wrapped.__module__)
  return getattr(module, wrapped.__name__, None) is configurable.wrapper
