"""Says in words what an object computes with, to compare it with another run's.

A model's results depend on its module, on how it decodes and on the functions
that these name. What neither is data nor has fields is described by the name of
its class or function, so two descriptions that are equal do not prove that the
objects are.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

# What training alone reads of a model, and flax's link to what made a module.
_UNREAD = frozenset(
  {'optimizer_def', '_optimizer_def', '_loss_normalizing_factor', 'parent'}
)


def of_model(model: Any) -> dict[str, Any]:
  """Returns {'model.module.num_layers': 2, ...} of a model's attributes.

  The values are those of JSON.
  """
  found = {'model': _name(type(model))}
  for name, value in sorted(vars(model).items()):
    if name not in _UNREAD:
      found |= of(value, f'model.{name.lstrip("_")}')
  return found


def of(value: Any, name: str) -> dict[str, Any]:
  """Returns {name of each part: what it is}, `name` for the whole.

  Args:
    value: dataclasses, partial functions, mappings and sequences have parts.
    name: what it is called; that of a part follows after a dot.
  """
  if isinstance(value, functools.partial):
    parts = {'': value.func, **dict(enumerate(value.args)), **value.keywords}
  elif dataclasses.is_dataclass(value) and not isinstance(value, type):
    parts = {
      field.name: getattr(value, field.name, None)
      for field in dataclasses.fields(value)
      if field.name not in _UNREAD
    }
    parts = {'': type(value), **parts}
  elif isinstance(value, Mapping):
    parts = value
  elif isinstance(value, list | tuple):
    parts = dict(enumerate(value))
  else:
    return {name: _leaf(value)}
  found = {}
  for key, part in parts.items():
    found |= of(part, f'{name}.{key}' if key != '' else name)
  return found or {name: repr(value)}


def _leaf(value: Any) -> Any:
  """Returns what a value without parts is."""
  if value is None or isinstance(value, str | int):
    return value
  if isinstance(value, float):
    return value if math.isfinite(value) else repr(value)
  if isinstance(value, bytes | complex):
    return repr(value)
  if isinstance(value, np.ndarray | np.generic) or hasattr(value, '__array__'):
    array = np.ascontiguousarray(value)
    crc = zlib.crc32(array.tobytes())
    return f'{array.dtype}{list(array.shape)}, CRC-32 {crc:08x}'
  return _name(value if hasattr(value, '__qualname__') else type(value))


def _name(value: Any) -> str:
  return f'{value.__module__}.{value.__qualname__}'
