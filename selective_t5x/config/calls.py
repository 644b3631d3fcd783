"""Lists the calls that gin will make, with their arguments."""

import collections.abc
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gin
from gin.config import ConfigurableReference

from selective_t5x.bindings import inherited
from selective_t5x.config import entry_points, value_types
from selective_t5x.config.reader import Config


@dataclasses.dataclass(frozen=True)
class Call:
  """A configurable that gin calls, or passes on as a function.

  Attributes:
    function: the function or class that gin wraps.
    scopes: gin's scopes around the call.
    called: whether gin calls it. If not, gin passes the function itself on.
    values: the bound parameters in these scopes, with unresolved macros and
      references, and those that a class inherits (`bindings.inherited`).
    consumer: ('function name', 'parameter') that takes the result; ('', '')
      for the entry function.
  """

  function: Callable[..., Any]
  scopes: tuple[str, ...]
  called: bool
  values: Mapping[str, object]
  consumer: tuple[str, str] = ('', '')

  @property
  def name(self) -> str:
    """The configurable's name without its module."""
    return self.function.__name__

  @property
  def parameters(self) -> Mapping[str, inspect.Parameter]:
    """Its parameters by name."""
    return value_types.parameters(self.function)

  def key(self, parameter: str) -> str:
    """The key of a binding of a parameter: scope/Name.parameter."""
    return f'{"/".join([*self.scopes, ""])}{self.name}.{parameter}'

  def literal(self, parameter: str):
    """Returns a parameter's value with macros resolved, else its default."""
    if parameter in self.values:
      return follow(self.values[parameter])[0]
    known = self.parameters.get(parameter)
    return known.default if known is not None else None

  def label(self, parameter: str) -> str:
    """The macro that sets a parameter, or its key: what a user edits."""
    return follow(self.values.get(parameter))[1] or self.key(parameter)

  def where(self, config: Config, parameter: str) -> str:
    """Returns the place that sets a parameter or its macro, as 'file:line'."""
    macro = follow(self.values.get(parameter))[1]
    if macro in config.macros():
      return config.macros()[macro].where
    scope = '/'.join([*self.scopes, ''])
    base = inherited.base_of(self.function)
    names = (self.name, base.__name__ if base else '')
    for binding in reversed(config.bindings):
      same = binding.selector.split('.')[-1] in names
      if same and binding.name == parameter and scope.startswith(binding.scope):
        return binding.where
    return self.key(parameter)


def of_entry(entry: Callable) -> Iterator[Call]:
  """Yields the entry function's call and all calls for its arguments.

  Args:
    entry: the registered entry function. gin has parsed the configuration.
  """
  yield from _calls(entry, (), True, ('', ''), set())


def from_code() -> Iterator[Call]:
  """Yields bound configurables that no binding refers to.

  Python code calls them: a task reads its own difficulty, for instance. The
  entry functions of other run modes are left out.
  """
  bound: dict[tuple[tuple[str, ...], Callable], None] = {}
  referred = set()
  for (scope, selector), values in gin.config._CONFIG.items():
    referred |= {r.configurable.wrapped for r in references([*values.values()])}
    if selector not in ('gin.macro', 'gin.constant'):
      function = gin.config._REGISTRY[selector].wrapped
      bound[tuple(filter(None, scope.split('/'))), function] = None
  for scopes, function in bound:
    name = (function.__module__, function.__name__)
    if function not in referred and name not in entry_points.MODULES.values():
      with gin.config_scope(list(scopes)):
        values = _bound(function)
      yield Call(function, scopes, False, values)


def _calls(function, scopes, called, consumer, seen) -> Iterator[Call]:
  if (function, scopes, called, consumer) in seen:
    return
  seen.add((function, scopes, called, consumer))
  with gin.config_scope(list(scopes)):
    values = _bound(function)
  call = Call(function, scopes, called, values, consumer)
  yield call
  for name, value in values.items():
    for reference in references(value):
      yield from _calls(
        reference.configurable.wrapped,
        tuple(reference.scopes) or scopes,
        reference.evaluate,
        (call.name, name),
        seen,
      )


def _bound(function: Callable) -> dict[str, object]:
  """Returns the bindings of a function or class in the current scope."""
  values = gin.get_bindings(function, resolve_references=False)
  base = inherited.base_of(function)
  if base is None:
    return values
  parameters = value_types.parameters(function)
  from_base = inherited.bound(base)
  return {k: v for k, v in from_base.items() if k in parameters} | values


def follow(value: object) -> tuple[object, str]:
  """Resolves gin macros; returns (value, name of the last macro or '')."""
  name = ''
  while isinstance(value, ConfigurableReference) and (
    value.configurable.selector == 'gin.macro'
  ):
    name = '/'.join(value.scopes)
    value = gin.query_parameter(f'{name}/gin.macro.value')
  return value, name


def references(value: object) -> Iterator[ConfigurableReference]:
  """Yields gin's references inside a value, with macros resolved."""
  value, _ = follow(value)
  if isinstance(value, ConfigurableReference):
    if value.configurable.selector != 'gin.constant':
      yield value
  elif isinstance(value, collections.abc.Mapping):
    yield from references([*value.keys(), *value.values()])
  elif isinstance(value, list | tuple):
    for item in value:
      yield from references(item)
