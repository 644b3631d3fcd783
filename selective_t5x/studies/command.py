"""What the command lines of the studies share."""

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
    name: the study's, also of its folder in results/.
    description: for --help.
    argv: the flags.
    add_flags: adds those that only this study has.
    **counts: further flags, integers of 1 or more: the default, and the help.

  Returns:
    the flags, those of `flags.parser` and --seeds among them, and
    --gin.KEY=VALUE as 'KEY = VALUE' texts.

  Raises:
    UserError: a flag is unknown or has a value it cannot have.
  """
  made = flags.parser(f'selective_t5x.studies.{name}', description)
  flags.add_output_flags(made)
  flags.add_jobs_flag(made)
  made.set_defaults(output_dir=f'results/{name}')
  if add_flags:
    add_flags(made)
  counts = {'seeds': (3, 'seeds a variant'), **counts}
  for flag, (default, text) in counts.items():
    made.add_argument(
      f'--{flag}', type=int, default=default, metavar='N', help=text
    )
  return flags.parse(made, argv, counts=counts)
