"""What the commands of this package share: gin flags and exit codes."""

import argparse
import sys
from collections.abc import Callable

from selective_t5x import tasks
from selective_t5x.cli import failures, flags, libraries
from selective_t5x.config.session import Session
from selective_t5x.errors import UserError


def parser(name: str, description: str) -> argparse.ArgumentParser:
  """Returns a parser that knows --gin_file and --gin.KEY=VALUE."""
  return flags.parser(f'selective_t5x.tasks.{name}', description)


def run(
  parser: argparse.ArgumentParser,
  argv: list[str] | None,
  act: Callable[[argparse.Namespace], None],
) -> int:
  """Parses arguments and gin bindings, then calls `act` with the arguments.

  Returns:
    the exit code, 2 for an error of the user's.
  """
  try:
    args, bindings = flags.parse(parser, argv)
    libraries.quiet_libraries()
    libraries.import_tensorflow()
    tasks.register_all()  # so that bindings find their names
    with Session(args.gin_file, bindings, run_mode=None):
      act(args)
  except UserError as error:
    print(f'error: {failures.message(error)}', file=sys.stderr)
    return 2
  return 0
