"""Describes a model in words, to compare it with another run's.

A model's results depend on its module, its decoding and the functions that
these name. An object without fields that is not data is described by the name
of its class or function, so equal descriptions do not prove equal objects.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

# Attributes that only training reads, and flax's link to a module's parent.
_UNREAD = frozenset(
  {'optimizer_def', '_optimizer_def', '_loss_normalizing_factor', 'parent'}
)


def of_model(model: Any) -> dict[str, Any]:
  """Returns {'model.module.num_layers': 2, ...} of a model's attributes.

  The values have JSON's types.
  """
  description = {'model': _name(type(model))}
  for name, value in sorted(vars(model).items()):
    if name not in _UNREAD:
      description |= of(value, f'model.{name.lstrip("_")}')
  return description


def of(value: Any, name: str) -> dict[str, Any]:
  """Returns {name of each part: its description}.

  Args:
    value: dataclasses, partial functions, mappings and sequences have parts.
    name: name of the whole; the name of a part follows after a dot.
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
  descriptions = {}
  for key, part in parts.items():
    descriptions |= of(part, f'{name}.{key}' if key != '' else name)
  return descriptions or {name: repr(value)}


def _leaf(value: Any) -> Any:
  """Returns the description of a value without parts."""
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
