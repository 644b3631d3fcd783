"""What the command lines of this package share: gin flags and errors."""

import argparse
import sys
from collections.abc import Callable

from selective_t5x import tasks
from selective_t5x.config import apply as config_parse
from selective_t5x.config import files as config_files
from selective_t5x.config import reader as config_check
from selective_t5x.errors import UserError
from selective_t5x.runs import startup


def parser(name: str, description: str) -> argparse.ArgumentParser:
  """Returns a parser that knows --gin_file."""
  made = argparse.ArgumentParser(
    prog=f'python -m selective_t5x.tasks.{name}',
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  made.add_argument(
    '--gin_file',
    action='append',
    default=[],
    help='bindings; so --gin.KEY=VALUE',
  )
  return made


def run(
  parser: argparse.ArgumentParser,
  argv: list[str] | None,
  act: Callable[[argparse.Namespace], None],
) -> int:
  """Parses arguments and gin bindings, then calls `act` with the arguments.

  Returns:
    the exit code, 2 for an error of the user's.
  """
  args, rest = parser.parse_known_args(argv)
  bindings = []
  for arg in rest:
    key, equals, value = arg.removeprefix('--gin.').partition('=')
    if not arg.startswith('--gin.') or not equals:
      parser.error(f'unexpected argument {arg}')
    bindings.append(f'{key} = {value}')
  try:
    startup.quiet_libraries()
    startup.import_tensorflow()
    tasks.register_all()  # so that bindings find their names

    paths = ['.', str(config_files.search_path())]
    config = config_check.load(args.gin_file, bindings, paths)
    config_parse.parse(config, args.gin_file, bindings, paths)
    act(args)
  except UserError as error:
    message = str(error).split('\n  In call to configurable')[0]
    print(f'error: {" ".join(message.split())}', file=sys.stderr)
    return 2
  return 0
