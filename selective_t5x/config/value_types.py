"""Compares gin's values with the type annotations of parameters.

T5X, the suite and most libraries annotate their parameters, so one rule covers
all: a value has the annotated type. Without an annotation it has the type of
the default. True is no number.
"""

import collections.abc
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gin
import ml_dtypes  # noqa: F401  (NumPy then knows bfloat16)
import numpy as np
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
  """Returns the named parameters of a function, with evaluated annotations.

  An annotation that cannot be evaluated becomes Any. A class that passes
  keyword arguments on to its base also has the base's parameters.

  Args:
    function: a function or a class, as gin registers it.
  """
  if not inspect.isclass(function):
    return _of_function(inspect.unwrap(function))[0]
  merged: dict[str, inspect.Parameter] = {}
  for base in function.__mro__:
    if init := vars(base).get('__init__'):
      named, passes_on = _of_function(inspect.unwrap(init))
      merged = named | merged
      if not passes_on:
        break
  merged.pop('self', None)
  return merged


def _of_function(function) -> tuple[dict[str, inspect.Parameter], bool]:
  """Returns (named parameters, whether it also takes **kwargs)."""
  try:
    signature = inspect.signature(function).parameters.values()
  except (TypeError, ValueError):  # Some functions written in C.
    return {}, False
  try:
    hints = typing.get_type_hints(function)
  except Exception:  # An annotation may be any code: evaluate each by itself.
    hints = {p.name: _evaluated(p.annotation, function) for p in signature}
  named = (
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
  )
  return {
    p.name: p.replace(annotation=hints.get(p.name, Any))
    for p in signature
    if p.kind in named
  }, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature)


def _evaluated(annotation, function):
  """Returns an evaluated annotation, or Any if that fails."""
  if annotation is inspect.Parameter.empty:
    return Any
  if not isinstance(annotation, str):
    return annotation
  holder = types.SimpleNamespace(__annotations__={'hint': annotation})
  scope = getattr(function, '__globals__', {})
  try:
    return typing.get_type_hints(holder, scope)['hint']
  except Exception:
    return Any


def problem(value: object, parameter: inspect.Parameter) -> str:
  """Returns what is wrong with a value of a parameter, or ''.

  Args:
    value: a literal or a reference, with macros resolved.
    parameter: one of the results of `parameters`.
  """
  annotation, default = parameter.annotation, parameter.default
  if value is default or value is gin.REQUIRED:
    return ''
  if annotation is Any and isinstance(default, _SCALARS) and value is not None:
    annotation = float if is_number(default) else type(default)
  # jax.typing.ArrayLike is a union with bool, but it stands for a number.
  is_numeric = not isinstance(default, bool) and any(
    option in (int, float) for option in _options(annotation)
  )
  if fits(value, annotation) and not (is_numeric and isinstance(value, bool)):
    return ''
  return _complaint(value, annotation)


def _complaint(value, annotation) -> str:
  """Describes the innermost part of a value that has the wrong type."""
  for part, part_type in _parts(value, annotation):
    if not fits(part, part_type):
      return _complaint(part, part_type)
  if isinstance(value, ConfigurableReference) and not value.evaluate:
    name = f'@{value.scoped_selector}'
    # The user has probably forgotten the brackets.
    return f'{name} is not of type {words(annotation)}; a call is {name}()'
  text = repr(value)
  if isinstance(value, ConfigurableReference):
    text = f'@{value.scoped_selector}()'
  return f'{text} is not of type {words(annotation)}'


def _parts(value, annotation) -> Iterator[tuple[object, object]]:
  """Yields (item, its annotation) of a mapping or sequence."""
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
  """Whether a value can have a type; True if that is not known.

  Args:
    value: a literal that may hold gin's references.
    annotation: a type or a construct of `typing`.
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
  if kind is np.dtype:
    return _is_dtype(value)
  if kind in (Any, object) or not inspect.isclass(kind):
    return True  # This includes type variables and unevaluated names.
  if getattr(kind, '_is_protocol', False):
    return callable(value) or not _is_callable(kind)
  try:
    return isinstance(value, kind)
  except TypeError:
    return True


def _is_dtype(value) -> bool:
  """Whether NumPy takes a value for a dtype; it takes names and types, too."""
  try:
    np.dtype(value)
  except TypeError:
    return False
  return value is not None


def _sequence_fits(value, args) -> bool:
  """Whether a value is a list or tuple with items of the right types.

  gin's users mix lists and tuples, so both fit. A string does not.
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
  """Whether the result of a call can have a type.

  True for a function: its result is only known after the call.
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
  """Whether instances of a class can be called."""
  return any('__call__' in vars(base) for base in kind.__mro__)


def _options(annotation) -> tuple[object, ...]:
  """Returns the types of a nested union, with Annotated removed."""
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
  """Returns a type in words: 'int', 'list of str or None', 'function'."""
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
