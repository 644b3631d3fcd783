"""Compares what files use of T5X with what the embedded engine has."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator

from selective_t5x.config import t5x_files
from selective_t5x.errors import UserError, did_you_mean
from selective_t5x.t5x_check import gin_uses, migration, python_uses
from selective_t5x.t5x_check.definitions import Definition, Library
from selective_t5x.t5x_check.uses import Use

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
_SKIPPED = {'.git', '.venv', 'node_modules', '__pycache__'}


@dataclasses.dataclass(frozen=True)
class Problem:
  """A use of something that the engine does not have.

  Attributes:
    use: the use.
    name: what is missing: a full name, 'name(parameter)' or a gin file's path.
    text: what is wrong, with the nearest valid name or the reason.
  """

  use: Use
  name: str
  text: str


def engine() -> Library:
  """Returns the definitions of the embedded engine."""
  return Library(
    {
      't5x': [_PACKAGE / 'engine', _PACKAGE / 't5x_package' / 't5x'],
      'selective_t5x': [_PACKAGE],
    }
  )


def source_files(path: str) -> list[pathlib.Path]:
  """Returns the Python and gin files of a folder, or the file itself.

  Raises:
    UserError: there is no such path, or it is a file of another kind.
  """
  root = pathlib.Path(path)
  if root.is_file():
    if root.suffix not in ('.py', '.gin'):
      raise UserError(f'{path}: expected a folder, or a .py or .gin file')
    return [root]
  if not root.is_dir():
    beside = root.parent.iterdir() if root.parent.is_dir() else ()
    nearest = did_you_mean(root.name, [p.name for p in beside])
    raise UserError(f'{path}: no such file or folder{nearest}')
  paths = []
  for folder, folders, names in os.walk(root):
    folders[:] = sorted(set(folders) - _SKIPPED)
    paths += [
      pathlib.Path(folder, name)
      for name in sorted(names)
      if name.endswith(('.py', '.gin'))
    ]
  return paths


def uses(file: pathlib.Path, library: Library) -> list[Use]:
  """Returns the uses of T5X in a file.

  Raises:
    UserError: it cannot be read or parsed.
  """
  try:
    source = file.read_bytes()
    if file.suffix == '.py':
      return list(python_uses.uses(source, str(file), library))
    return list(gin_uses.uses(source.decode('utf-8'), str(file)))
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'{file}: cannot be read: {error}') from error


def problems(all_uses: Iterable[Use], library: Library) -> Iterator[Problem]:
  """Yields what the engine does not have, in the order of the uses."""
  for use in all_uses:
    if use.name.endswith('.gin'):
      yield from _file_problems(use, library)
      continue
    name = missing_part(use.name, library)
    reason = migration.reason(use.name)
    if name is None:
      yield from _argument_problems(use, library)
    elif reason:
      name = use.name
      what = f'nothing calls {name}' if use.overrides else f'{name} is missing'
      yield Problem(use, name, f'{what}: {reason}')
    else:
      yield Problem(use, name, f'{name} is missing{_nearest(name, library)}')


def missing_part(name: str, library: Library) -> str | None:
  """Returns the shortest part of a full name that the library does not have."""
  parts = name.split('.')
  for count in range(1, len(parts) + 1):
    part = '.'.join(parts[:count])
    if library.find(part) is None:
      return part
  return None


def _nearest(name: str, library: Library) -> str:
  """Returns the names of the library that are nearest to a missing one."""
  owner, _, last = name.rpartition('.')
  definition = library.find(owner)
  if not isinstance(definition, Definition):
    return ''
  names = library.attributes(definition)
  return did_you_mean(last, [n for n in names if not n.startswith('_')])


def _argument_problems(use: Use, library: Library) -> Iterator[Problem]:
  definition = library.find(use.name)
  if not isinstance(definition, Definition):
    return
  parameters = library.parameters(definition)
  if parameters is None:
    return
  for keyword in use.keywords:
    if keyword in parameters.names or parameters.more_keywords:
      continue
    name = f'{use.name}({keyword})'
    reason = migration.reason(name)
    advice = (
      f': {reason}' if reason else did_you_mean(keyword, parameters.names)
    )
    text = f'{use.name} has no parameter {keyword}{advice}'
    yield Problem(use, name, text)
  most = len(parameters.names) - len(parameters.keyword_only)
  if use.positions is None:
    return
  if use.positions > most and not parameters.more_positions:
    text = f'{use.name} takes {most} arguments by position, not {use.positions}'
    yield Problem(use, f'{use.name}()', text)
  required = [
    name
    for name in parameters.names[use.positions :]
    if name not in (*parameters.optional, *use.keywords)
  ]
  if required:
    text = f'{use.name} needs {", ".join(required)}, which this call lacks'
    yield Problem(use, f'{use.name}()', text)


def _file_problems(use: Use, library: Library) -> Iterator[Problem]:
  """Yields a problem if a gin file of T5X's is not here."""
  package, _, path = use.name.partition('/')
  if not any((folder / path).is_file() for folder in library.folders(package)):
    reason = migration.reason(use.name)
    advice = f': {reason}' if reason else t5x_files.replacement(use.name)
    yield Problem(use, use.name, f'{use.name} is missing{advice}')
