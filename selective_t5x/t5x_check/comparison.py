"""Compares the public names of the real T5X with those of the engine."""

import ast
import dataclasses
from collections.abc import Iterator

from selective_t5x.t5x_check import syntax
from selective_t5x.t5x_check.definitions import (
  UNKNOWN,
  Alias,
  Definition,
  Library,
)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """The public names of one module of T5X.

  Attributes:
    module: its full name.
    names: its names: 'module.name', 'module.Class.name', and a parameter of a
      function, method or constructor as 'module.name(parameter)'.
    missing: those of them that the engine lacks. The names below a missing one
      are missing too.
    borrowed: those that T5X only takes over from another library.
  """

  module: str
  names: tuple[str, ...]
  missing: tuple[str, ...]
  borrowed: frozenset[str]

  @property
  def roots(self) -> tuple[str, ...]:
    """The missing names that are not below another missing one."""
    return tuple(
      name
      for name in self.missing
      if not any(
        name.startswith((f'{other}.', f'{other}(')) for other in self.missing
      )
    )


def compare(t5x: Library, engine: Library) -> list[Comparison]:
  """Returns the comparisons of all modules of T5X that have public names."""
  comparisons = []
  for module in t5x.modules('t5x'):
    names = tuple(public_names(t5x, module))
    missing = tuple(name for name in names if not has(engine, name))
    if names:
      borrowed = frozenset(n for n in names if t5x.find(n) is UNKNOWN)
      comparisons.append(Comparison(module, names, missing, borrowed))
  return comparisons


def public_names(library: Library, module: str) -> Iterator[str]:
  """Yields the public names that a module defines itself."""
  for name, node in library.module(module).names.items():
    if not name.startswith('_') and not isinstance(node, Alias):
      full = f'{module}.{name}'
      yield full
      yield from _below(library, Definition(full, node, library.module(module)))


def _below(library: Library, definition: Definition) -> Iterator[str]:
  """Yields the parameters of a definition and the names of a class."""
  parameters = library.parameters(definition)
  for parameter in parameters.names if parameters else ():
    if not parameter.startswith('_'):
      yield f'{definition.name}({parameter})'
  if isinstance(definition.node, ast.ClassDef):
    for name in syntax.members(definition.node):
      if not name.startswith('_'):
        attribute = library.attribute(definition, name)
        yield f'{definition.name}.{name}'
        yield from _below(library, attribute)


def has(library: Library, name: str) -> bool:
  """Whether a library has a name, or may have it as far as can be read."""
  full, _, parameter = name.rstrip(')').partition('(')
  definition = library.find(full)
  if not isinstance(definition, Definition) or not parameter:
    return definition is not None
  parameters = library.parameters(definition)
  return (
    parameters is None
    or parameters.more_keywords
    or parameter in parameters.names
  )
