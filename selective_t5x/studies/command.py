"""What the command lines of the studies share."""

import argparse
from collections.abc import Callable, Sequence

from selective_t5x.cli import flags
from selective_t5x.comparisons import compare, plan
from selective_t5x.comparisons.figures import Comparison


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
  args, bindings = flags.parse(made, argv)
  for flag in counts:
    flags.check_count(flag, getattr(args, flag))
  return args, bindings


def compared(
  gin_files: Sequence[str],
  variants: Sequence[plan.Variant],
  args: argparse.Namespace,
  bindings: Sequence[str],
) -> Comparison | None:
  """Trains what a study compares; with --dry_run only says what that is.

  Args:
    gin_files: what all variants share.
    variants: the first is the reference.
    args: of `parse`.
    bindings: of `parse`.

  Returns:
    the comparison, or None for --dry_run.
  """
  files = [*gin_files, *args.gin_file]
  if args.dry_run:
    seeds = range(args.seeds)
    runs = plan.make_cells(files, variants, seeds, bindings, args.output_dir)
    print(compare.describe(runs, args.jobs))
    return None
  return compare.compare(
    files,
    variants,
    output_dir=args.output_dir,
    seeds=args.seeds,
    gin_bindings=bindings,
    jobs=args.jobs,
  )
