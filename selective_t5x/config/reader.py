"""Reads a gin configuration without importing the modules it names.

gin reports a missing file, a misspelt macro or an unquoted string after it has
imported TensorFlow and JAX, or never. This module reads the files and bindings
with gin's own parser and reports such mistakes in under a second. `apply` makes
the checks that need the modules.
"""

import contextlib
import dataclasses
import os
import pathlib
import tokenize
from collections.abc import Iterator, Sequence
from typing import Any

from gin import config_parser

from selective_t5x.config import files
from selective_t5x.errors import UserError, did_you_mean, is_remote

# Macros that hold a path of the run; see `Config.path_bindings`.
PATH_MACROS = (
  'MODEL_DIR',
  'EVAL_OUTPUT_DIR',
  'CHECKPOINT_PATH',
  'INITIAL_CHECKPOINT_PATH',
)
_COMMAND_LINE = ''
_REQUIRED = ('gin.REQUIRED', 'REQUIRED')


@dataclasses.dataclass(frozen=True)
class Macro:
  """A reference to a macro or a constant: %name."""

  name: str


@dataclasses.dataclass(frozen=True)
class Reference:
  """A reference to a configurable: @selector, or @selector() when called."""

  selector: str
  evaluate: bool


class Delegate(config_parser.ParserDelegate):
  """Keeps references as names, without looking them up."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    """Returns @name or @name() as a Reference."""
    return Reference(scoped_configurable_name, evaluate)

  def macro(self, macro_name):
    """Returns %name as a Macro."""
    return Macro(macro_name)


@dataclasses.dataclass(frozen=True)
class Binding:
  """One `name = value` of a gin file or of the command line.

  Attributes:
    scope: scopes before the selector, joined by '/', or ''.
    selector: the configurable as written; '' for a macro.
    name: the parameter, or the macro's name with its scope.
    value: a literal that may hold `Macro` and `Reference` objects.
    file: the gin file as named in a flag or include; '' for the command line.
    line: the line in that file, from 1.
    imports: {name: module} of the file's imports before this line.
    files: the chain of includes: the file of the flag first, the binding's own
      file last; empty for the command line.
  """

  scope: str
  selector: str
  name: str
  value: Any
  file: str
  line: int
  imports: dict[str, str]
  files: tuple[str, ...] = ()

  @property
  def key(self) -> str:
    """The left-hand side of the binding."""
    if not self.selector:
      return self.name
    scope = f'{self.scope}/' if self.scope else ''
    return f'{scope}{self.selector}.{self.name}'

  @property
  def on_command_line(self) -> bool:
    """Whether it comes from --gin.KEY=VALUE or --gin_bindings."""
    return self.file == _COMMAND_LINE

  @property
  def where(self) -> str:
    """The place of the binding: 'file:line', or the flag."""
    if self.on_command_line:
      return f'--gin.{self.key}'
    return f'{self.file}:{self.line}'

  @property
  def full_selector(self) -> str:
    """The selector with its import name replaced by the full module name."""
    return self.full(self.selector)

  def full(self, selector: str) -> str:
    """Returns the full name of a selector of the same file, without scopes."""
    first, *rest = selector.rpartition('/')[2].split('.')
    return '.'.join([self.imports.get(first, first), *rest])

  def overrides(self, other: 'Binding') -> bool:
    """Whether this binding of the command line overrides one of a file.

    On the command line, gin accepts the last parts of a configurable's name.
    """
    names = (f'.{other.selector}', f'.{other.full_selector}')
    return (self.scope, self.name) == (other.scope, other.name) and any(
      name.endswith(f'.{self.selector}') for name in names
    )


@dataclasses.dataclass(frozen=True)
class Import:
  """An import in a gin file: the full module name and its 'file:line'."""

  module: str
  where: str


@dataclasses.dataclass(frozen=True)
class Config:
  """All imports and bindings of a run, in the order in which gin meets them."""

  imports: tuple[Import, ...]
  bindings: tuple[Binding, ...]

  def final(self) -> list[Binding]:
    """Returns the bindings that no later one overrides."""
    final: dict[tuple[str, str, str], Binding] = {}
    for binding in self.bindings:
      key = (binding.scope, binding.full_selector, binding.name)
      if binding.on_command_line and binding.selector:
        key = next((k for k, b in final.items() if binding.overrides(b)), key)
      final[key] = binding
    return list(final.values())

  def macros(self) -> dict[str, Binding]:
    """Returns {name: binding} of all macros."""
    return {b.name: b for b in self.bindings if not b.selector}

  def path_bindings(self) -> list[str]:
    """Returns gin bindings that make the run's relative paths absolute.

    Orbax refuses a relative path, and the process may change its folder.
    """
    macros = self.macros()
    return [
      f'{name} = {os.path.abspath(macros[name].value)!r}'
      for name in PATH_MACROS
      if name in macros
      and isinstance(macros[name].value, str)
      and macros[name].value
      and not is_remote(macros[name].value)
    ]


def load(
  files: Sequence[str], bindings: Sequence[str], search_paths: Sequence[str]
) -> Config:
  """Reads gin files, their includes, and command-line bindings.

  Args:
    files: paths of gin files, absolute or below one of search_paths.
    bindings: 'KEY = VALUE' texts, applied after the files.
    search_paths: folders to search in order.

  Returns:
    The bindings in the order in which gin applies them.

  Raises:
    UserError: a file is missing, or gin cannot parse a file or a binding.
  """
  statements: list[Import | Binding] = []
  for name in files:
    statements.extend(_read_file(name, search_paths, (), f'--gin_file={name}'))
  for text in bindings:
    statements.extend(_read_flag(text, search_paths))
  return _config(statements)


def _config(statements) -> Config:
  statements = list(statements)
  return Config(
    imports=tuple(s for s in statements if isinstance(s, Import)),
    bindings=tuple(s for s in statements if isinstance(s, Binding)),
  )


def read(text: str, name: str) -> Config:
  """Reads the text of one gin file; sys.path is searched for its includes.

  Raises:
    UserError: gin cannot parse it. The message begins with `name`.
  """
  return _config(_read_text(text, name, (), ()))


def check(config: Config) -> None:
  """Checks that every macro is both bound and read.

  Raises:
    UserError: a macro is read but not bound, is still REQUIRED, or is bound on
      the command line but not read.
  """
  final, macros = config.final(), config.macros()
  reads: dict[str, Binding] = {}
  for binding in final:
    for name in _macros_in(binding.value):
      reads.setdefault(name, binding)

  for binding in config.bindings:
    if not binding.selector and binding.on_command_line:
      if binding.name not in reads:
        raise UserError(
          f'{binding.where}: no loaded gin file reads a macro of this name'
          f'{did_you_mean(binding.name, reads)}'
        )
  for name, reader in reads.items():
    # A name with a dot is a constant that some module registers.
    if name not in macros and name not in _REQUIRED and '.' not in name:
      raise UserError(
        f'{reader.where}: {reader.key} reads %{name}, which nothing sets: '
        f'load a gin file that does, or give --gin.{name}=VALUE'
        f'{did_you_mean(name, macros)}'
      )
  missing = [
    b for b in final if isinstance(b.value, Macro) and b.value.name in _REQUIRED
  ]
  if missing:
    names = ', '.join(f'{b.key} (required at {b.where})' for b in missing)
    raise UserError(
      f'no value for {names}: give --gin.{missing[0].key}=VALUE, a string as '
      f'--gin.{missing[0].key}="\'text\'"'
    )


def gin_text(value) -> str:
  """Returns the gin text of a parsed value."""
  if isinstance(value, Macro):
    return f'%{value.name}'
  if isinstance(value, Reference):
    return f'@{value.selector}{"()" if value.evaluate else ""}'
  if isinstance(value, dict):
    items = (f'{gin_text(k)}: {gin_text(v)}' for k, v in value.items())
    return '{' + ', '.join(items) + '}'
  if isinstance(value, list):
    return '[' + ', '.join(map(gin_text, value)) + ']'
  if isinstance(value, tuple):
    return '(' + ''.join(f'{gin_text(item)}, ' for item in value) + ')'
  return repr(value)


def leaves(value) -> Iterator[object]:
  """Yields the leaves of a value of nested lists, tuples and dicts."""
  if isinstance(value, dict):
    value = [*value.keys(), *value.values()]
  if isinstance(value, list | tuple):
    for item in value:
      yield from leaves(item)
  else:
    yield value


def _macros_in(value) -> Iterator[str]:
  """Yields the names of the macros inside a value."""
  return (leaf.name for leaf in leaves(value) if isinstance(leaf, Macro))


def _read_file(
  name, search_paths, including, source
) -> Iterator[Import | Binding]:
  """Yields the statements of a file, with each include replaced by its own."""
  path = files.find(name, search_paths, source)
  if name in including:
    raise UserError(f'{source}: a file cannot include itself')
  try:
    text = pathlib.Path(path).read_text(encoding='utf-8')
  except UnicodeDecodeError as error:
    raise UserError(f'{name}: not a text file ({error})') from error
  yield from _read_text(text, name, search_paths, (*including, name))


def _read_text(text, name, search_paths, including):
  """Yields the statements of the text of one file."""
  with parse_errors(name):
    parser = config_parser.ConfigParser(text, Delegate())
    yield from _read(parser, name, search_paths, including)


@contextlib.contextmanager
def parse_errors(name: str) -> Iterator[None]:
  """Turns gin's errors about a file inside the context into UserError."""
  try:
    yield
  except SyntaxError as error:
    line = (error.text or '').strip()
    raise UserError(
      f'{name}:{error.lineno}: cannot read "{line}": {_reason(error)}'
    ) from error
  except tokenize.TokenError as error:
    message, (line, _) = error.args
    raise UserError(f'{name}:{line}: {message}') from error


def _read_flag(text, search_paths) -> Iterator[Import | Binding]:
  """Yields the statements of one --gin.KEY=VALUE or --gin_bindings."""
  key, _, value = (part.strip() for part in text.partition('='))
  try:
    parser = config_parser.ConfigParser(text, Delegate())
    yield from _read(parser, _COMMAND_LINE, search_paths, ())
  except (SyntaxError, tokenize.TokenError) as error:
    raise UserError(
      f'--gin.{key}={value}: {_quoting(key, value, error)}'
    ) from error


def _read(parser, file, search_paths, including) -> Iterator[Import | Binding]:
  """Yields the statements of a gin parser."""
  imports = {}
  for statement in parser:
    where = f'{file or "--gin_bindings"}:{statement.location.line_num}'
    if isinstance(statement, config_parser.IncludeStatement):
      name = statement.filename
      source = f'{where}: include {name!r}'
      yield from _read_file(name, search_paths, including, source)
    elif isinstance(statement, config_parser.ImportStatement):
      whole = statement.alias or statement.is_from
      bound = statement.bound_name()
      imports[bound] = statement.module if whole else bound
      if not statement.module.startswith('__gin__.'):
        yield Import(statement.module, where)
    elif isinstance(statement, config_parser.BindingStatement):
      yield _binding(statement, file, dict(imports), including)


def _binding(statement, file, imports, files) -> Binding:
  """Converts gin's statement; NAME = VALUE binds the macro NAME."""
  scope, selector, name = statement[:3]
  if not name or (selector in ('macro', 'gin.macro') and name == 'value'):
    parts = [scope] if name else [scope, selector]
    scope, selector, name = '', '', '/'.join(filter(None, parts))
  return Binding(
    scope,
    selector,
    name,
    statement.value,
    file,
    statement.location.line_num,
    imports,
    files,
  )


def _reason(error) -> str:
  """Returns the useful part of a parse error's message on one line."""
  lines = [line.strip() for line in str(error.args[0]).splitlines()]
  token = lines[-1].removeprefix("Failed to parse token '").removesuffix("'")
  if token != lines[-1]:
    return f'{token} is no value; a string needs quotes: {token!r}'
  return lines[0].rstrip('.')


def _quoting(key, value, error) -> str:
  """Explains a malformed value of the command line and shows a correct one."""
  if not key.replace('/', '.').replace('.', '_').isidentifier():
    return f'{_reason(error)}; expected --gin.NAME=VALUE'
  if not value:
    return f'has no value; an empty string is --gin.{key}="\'\'"'
  if value.title() in ('True', 'False', 'None'):
    return f'expected --gin.{key}={value.title()}'
  if value[0] in '%@([{':
    return (
      f'{_reason(error)}; put the whole value in double quotes and every '
      'string inside it in single quotes'
    )
  bare = value.strip('\'"')
  return f'a string needs quotes inside quotes: --gin.{key}="{bare!r}"'
