"""Shared flags of the suite's commands, and the parser of --gin.KEY=VALUE."""

import argparse
import ast
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from selective_t5x.errors import UserError, did_you_mean

# The prefix of flags that bind a gin macro or parameter.
GIN = '--gin.'


def parser(module: str, description: str) -> argparse.ArgumentParser:
  """Returns a parser with --gin_file and --gin.KEY that raises UserError.

  Args:
    module: the module that `python -m` runs.
    description: the text of --help.
  """
  flags = _Parser(
    prog=f'python -m {module}',
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  flags.add_argument(
    '--gin_file',
    action='append',
    default=[],
    metavar='FILE',
    help='a gin file for all runs; repeat the flag for more, in order',
  )
  flags.add_argument(
    '--gin.KEY',  # For --help; `parse` reads them.
    action='append',
    metavar='VALUE',
    help='bind a gin macro or parameter in all runs, for any KEY',
  )
  return flags


def add_output_flags(flags: argparse.ArgumentParser) -> None:
  """Adds --output_dir and --dry_run."""
  flags.add_argument('--output_dir', metavar='DIR', help='where all results go')
  flags.add_argument(
    '--dry_run',
    action='store_true',
    help='print the runs and the bindings they differ in; run nothing',
  )


def add_jobs_flag(flags: argparse.ArgumentParser) -> None:
  """Adds --jobs, for commands that train models."""
  flags.add_argument(
    '--jobs',
    type=int,
    default=1,
    metavar='N',
    help='runs trained at a time, each in a process of its own',
  )


def add_examples_flag(flags: argparse.ArgumentParser) -> None:
  """Adds --examples, for commands whose page has the masking viewer."""
  flags.add_argument(
    '--examples',
    type=_row_count,
    default=3,
    metavar='N',
    help='rows in the masking viewer, of all selective variants; 0 for none',
  )


def parse(
  flags: argparse.ArgumentParser,
  argv: Sequence[str],
  *,
  needed: Iterable[str] = (),
  counts: Iterable[str] = (),
) -> tuple[argparse.Namespace, list[str]]:
  """Returns the flags, and --gin.KEY=VALUE as 'KEY = VALUE' texts.

  Args:
    flags: a parser.
    argv: the arguments.
    needed: flags that must have a value.
    counts: flags whose value must be 1 or more.

  Raises:
    UserError: a flag is unknown or missing, or its value is invalid.
  """
  bindings, rest = gin_bindings(argv)
  args, unknown = flags.parse_known_args(rest)
  if unknown and not unknown[0].startswith('-'):
    raise UserError(
      f'unexpected argument {unknown[0]!r}: write every setting as --flag=value'
    )
  if unknown:
    names = re.findall(r'--[\w.]+', flags.format_usage())
    name = unknown[0].partition('=')[0]
    raise UserError(f'{name}: no such flag{did_you_mean(name, names)}')
  for name in (*counts, *(['jobs'] if 'jobs' in args else [])):
    check_count(name, getattr(args, name))
  for name in needed:
    if not getattr(args, name):
      raise UserError(
        f'no --{name}: the flag is required; --help has an example'
      )
  return args, bindings


def named(texts: Iterable[str], flag: str) -> dict[str, str]:
  """Returns {name: path} of --flag=NAME=DIR flags.

  Raises:
    UserError: one of them has no name or path, or a name is repeated.
  """
  paths = {}
  for text in texts:
    name, equals, path = text.partition('=')
    if not equals or not name or name in paths:
      raise UserError(f'--{flag}={text}: expected NAME=DIR, each NAME once')
    paths[name] = path
  return paths


def gin_bindings(argv: Iterable[str]) -> tuple[list[str], list[str]]:
  """Returns --gin.KEY=VALUE flags as 'KEY = VALUE' texts, and the other words.

  Raises:
    UserError: one of them has no '='.
  """
  bindings, rest = [], []
  for argument in argv:
    if not argument.startswith(GIN):
      rest.append(argument)
      continue
    key, equals, value = argument.removeprefix(GIN).partition('=')
    if not equals:
      raise UserError(f'{argument}: expected {argument}=VALUE, in one word')
    bindings.append(f'{key} = {value}')
  return bindings, rest


def swept(texts: Iterable[str]) -> dict[str, list[Any]]:
  """Returns the values of each KEY of --sweep="KEY=[VALUE, ...]" flags.

  Raises:
    UserError: a value is not a list of Python literals, or a key is repeated.
  """
  grid = {}
  for text in texts:
    key, _, literal = text.partition('=')
    key = key.strip()
    try:
      values = ast.literal_eval(literal.strip())
    except (ValueError, SyntaxError):
      values = None
    if not key or not isinstance(values, list) or not values:
      raise UserError(
        f'--sweep={text}: expected KEY=[VALUE, ...], a list of plain values, '
        'for instance LEARNING_RATE=[0.001, 0.003]'
      )
    if key in grid:
      raise UserError(f'--sweep={text}: {key} is swept twice')
    grid[key] = values
  return grid


def check_count(flag: str, value: int) -> None:
  """Raises UserError if the value of a flag is less than 1."""
  if value < 1:
    raise UserError(f'--{flag}={value}: expected 1 or more')


def command_line() -> str:
  """Returns the shell command that this process was started with."""
  return shlex.join(['python', *sys.orig_argv[1:]])


class _Parser(argparse.ArgumentParser):
  """Raises UserError for mistakes, as all commands of the suite do."""

  def error(self, message):
    raise UserError(message)


def _row_count(text: str) -> int:
  if not text.isdigit():
    raise argparse.ArgumentTypeError(f'{text!r}, expected 0 or more')
  return int(text)
