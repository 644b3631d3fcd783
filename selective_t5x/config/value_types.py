"""Compares the values that gin gives with what a parameter is annotated as.

T5X, the suite and most libraries annotate their parameters, so one rule covers
them: a value is of the annotated type, a parameter without an annotation takes
what is like its default, and True is no number.
"""

import collections.abc
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gin
from gin.config import ConfigurableReference

from selective_t5x.errors import is_integer, is_number

_SCALARS = (bool, int, float, str)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_SEQUENCES = (
  list,
  tuple,
  collections.abc.Sequence,
  collections.abc.Iterable,
  collections.abc.Collection,
)
_UNIONS = (types.UnionType, typing.Union)


@functools.cache
def parameters(function: Callable) -> Mapping[str, inspect.Parameter]:
  """Returns the parameters whose names are known, with evaluated annotations.

  An annotation that cannot be evaluated is Any. A class that passes keyword
  arguments on to its base takes the base's too.

  Args:
    function: a function or a class, as gin registers it.
  """
  if not inspect.isclass(function):
    return _of_function(inspect.unwrap(function))[0]
  merged: dict[str, inspect.Parameter] = {}
  for base in function.__mro__:
    if init := vars(base).get('__init__'):
      own, passes_on = _of_function(inspect.unwrap(init))
      merged = own | merged
      if not passes_on:
        break
  merged.pop('self', None)
  return merged


def _of_function(function) -> tuple[dict[str, inspect.Parameter], bool]:
  """Returns its named parameters, and whether it takes any others."""
  try:
    found = inspect.signature(function).parameters.values()
  except (TypeError, ValueError):  # Some functions written in C.
    return {}, False
  try:
    hints = typing.get_type_hints(function)
  except Exception:  # Annotations are any code: take those that load.
    hints = {p.name: _evaluated(p.annotation, function) for p in found}
  named = (
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
  )
  return {
    p.name: p.replace(annotation=hints.get(p.name, Any))
    for p in found
    if p.kind in named
  }, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found)


def _evaluated(annotation, function):
  """Returns what an annotation stands for, Any where that is not known."""
  if annotation is inspect.Parameter.empty:
    return Any
  if not isinstance(annotation, str):
    return annotation
  one = types.SimpleNamespace(__annotations__={'one': annotation})
  try:
    return typing.get_type_hints(one, getattr(function, '__globals__', {}))[
      'one'
    ]
  except Exception:
    return Any


def problem(value: object, parameter: inspect.Parameter) -> str:
  """Returns what is wrong with a value of a parameter, or ''.

  Args:
    value: what gin was given, macros followed: a literal, or a reference.
    parameter: one that `parameters` returns.
  """
  annotation, default = parameter.annotation, parameter.default
  if value is default or value is gin.REQUIRED:
    return ''
  if annotation is Any and isinstance(default, _SCALARS) and value is not None:
    annotation = float if is_number(default) else type(default)
  # jax.typing.ArrayLike has bool among many types; a number is meant.
  a_number = not isinstance(default, bool) and any(
    option in (int, float) for option in _options(annotation)
  )
  if fits(value, annotation) and not (a_number and isinstance(value, bool)):
    return ''
  return _complaint(value, annotation)


def _complaint(value, annotation) -> str:
  """Returns which part of a value is not what it should be."""
  for part, of in _parts(value, annotation):
    if not fits(part, of):
      return _complaint(part, of)
  if isinstance(value, ConfigurableReference) and not value.evaluate:
    name = f'@{value.scoped_selector}'
    # Most likely the brackets were forgotten.
    return f'{name} is not of type {words(annotation)}; a call is {name}()'
  shown = repr(value)
  if isinstance(value, ConfigurableReference):
    shown = f'@{value.scoped_selector}()'
  return f'{shown} is not of type {words(annotation)}'


def _parts(value, annotation) -> Iterator[tuple[object, object]]:
  """Yields (item, its annotation) of a mapping or sequence that is one."""
  kinds = _MAPPINGS if isinstance(value, dict) else _SEQUENCES
  options = [o for o in _options(annotation) if typing.get_origin(o) in kinds]
  if len(options) != 1 or not isinstance(value, dict | list | tuple):
    return
  args = typing.get_args(options[0])
  if isinstance(value, dict):
    for key, item in value.items():
      yield from ((key, args[0]), (item, args[1]))
  elif len(args) == 1 or args[-1] is ...:
    yield from ((item, args[0]) for item in value)


def fits(value: object, annotation: object) -> bool:
  """Returns whether a value can be of a type; what is not known fits.

  Args:
    value: a literal that may hold gin's references.
    annotation: a type, or what `typing` makes of types.
  """
  if isinstance(value, ConfigurableReference):
    name = value.configurable.selector
    if name == 'gin.macro':
      bound = gin.query_parameter(f'{"/".join(value.scopes)}/gin.macro.value')
      return fits(bound, annotation)
    if name == 'gin.constant':
      return True
    if not value.evaluate:
      return fits(value.configurable.wrapped, annotation)
    return _result_fits(value.configurable.wrapped, annotation)
  options = _options(annotation)
  if len(options) > 1:
    return any(fits(value, option) for option in options)
  origin, args = typing.get_origin(annotation), typing.get_args(annotation)
  if origin is typing.Literal:
    return any(value == a and type(value) is type(a) for a in args)
  if annotation is None or annotation is type(None):
    return value is None
  kind = origin or annotation
  if kind in _MAPPINGS:
    return isinstance(value, collections.abc.Mapping) and (
      not args
      or all(fits(k, args[0]) and fits(v, args[1]) for k, v in value.items())
    )
  if kind in _SEQUENCES:
    return _sequence_fits(value, args)
  if kind is collections.abc.Callable:
    return callable(value)
  if kind is type:
    return isinstance(value, type)
  if kind is float:  # Python takes an int for a float.
    return is_number(value)
  if kind is int:
    return is_integer(value)
  if kind in (Any, object) or not inspect.isclass(kind):
    return True  # Also a type variable, or a name that was not evaluated.
  if getattr(kind, '_is_protocol', False):
    return callable(value) or not _is_callable(kind)
  try:
    return isinstance(value, kind)
  except TypeError:
    return True


def _sequence_fits(value, args) -> bool:
  """Returns whether it is a list or tuple of what it should hold.

  gin's users write lists and tuples alike; a string is neither.
  """
  if isinstance(value, str | bytes | collections.abc.Mapping):
    return False
  if not isinstance(value, collections.abc.Iterable):
    return False
  if not args or not isinstance(value, list | tuple):
    return True
  if len(args) > 1 and args[-1] is not ...:
    return len(value) == len(args) and all(map(fits, value, args))
  return all(fits(item, args[0]) for item in value)


def _result_fits(target: Callable, annotation) -> bool:
  """Returns whether an instance of a class can be of a type.

  What a function returns is known when it has been called.
  """
  if not inspect.isclass(target):
    return True
  for option in _options(annotation):
    kind = typing.get_origin(option) or option
    if kind is collections.abc.Callable:
      fit = _is_callable(target)
    elif kind in (None, typing.Literal):
      fit = False
    elif kind is Any or not inspect.isclass(kind):
      fit = True
    elif getattr(kind, '_is_protocol', False):
      fit = True
    else:
      try:
        fit = issubclass(target, kind)
      except TypeError:
        fit = True
    if fit:
      return True
  return False


def _is_callable(kind: type) -> bool:
  """Returns whether instances of a class can be called."""
  return any('__call__' in vars(base) for base in kind.__mro__)


def _options(annotation) -> tuple[object, ...]:
  """Returns the types of a union, in it or through Annotated."""
  if typing.get_origin(annotation) is typing.Annotated:
    annotation = typing.get_args(annotation)[0]
  if typing.get_origin(annotation) in _UNIONS:
    return tuple(
      inner
      for option in typing.get_args(annotation)
      for inner in _options(option)
    )
  return (annotation,)


def words(annotation: object) -> str:
  """Returns a type as one says it: 'int', 'list of str or None', 'function'."""
  options = _options(annotation)
  if complex in options:  # jax.typing.ArrayLike
    return 'number or array'
  if len(options) > 1:
    return ' or '.join(dict.fromkeys(map(words, options)))
  origin, args = typing.get_origin(annotation), typing.get_args(annotation)
  if origin is typing.Literal:
    return ' or '.join(map(repr, args))
  if annotation is None or annotation is type(None):
    return 'None'
  kind = origin or annotation
  if kind in _MAPPINGS:
    return f'dict of {words(args[1])}' if args else 'dict'
  if kind in _SEQUENCES:
    return f'list of {words(args[0])}' if args else 'list'
  if kind is collections.abc.Callable:
    return 'function'
  if kind is type:
    return 'class'
  return getattr(kind, '__name__', str(kind))
