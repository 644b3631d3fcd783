"""Parses the command lines of studies."""

import argparse
from collections.abc import Callable, Sequence

from selective_t5x.cli import flags


def parse(
  name: str,
  description: str,
  argv: Sequence[str],
  add_flags: Callable[[argparse.ArgumentParser], None] | None = None,
  **counts: tuple[int, str],
) -> tuple[argparse.Namespace, list[str]]:
  """Parses `python -m selective_t5x.studies.NAME`.

  Args:
    name: the name of the study and of its folder in results/.
    description: the text of --help.
    argv: the flags.
    add_flags: adds the flags that only this study has.
    **counts: {flag with an integer of 1 or more: (default, help)}.

  Returns:
    the flags, including --seeds and those of `flags.parser`, and the
    --gin.KEY=VALUE flags as 'KEY = VALUE' texts.

  Raises:
    UserError: a flag is unknown or its value is invalid.
  """
  parser = flags.parser(f'selective_t5x.studies.{name}', description)
  flags.add_output_flags(parser)
  flags.add_jobs_flag(parser)
  parser.set_defaults(output_dir=f'results/{name}')
  if add_flags:
    add_flags(parser)
  counts = {'seeds': (3, 'seeds a variant'), **counts}
  for flag, (default, text) in counts.items():
    parser.add_argument(
      f'--{flag}', type=int, default=default, metavar='N', help=text
    )
  return flags.parse(parser, argv, counts=counts)
