"""Trains the missing runs of a comparison and writes its figures."""

import argparse
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from selective_t5x.comparisons import claims, plan, quantities, training
from selective_t5x.comparisons.figures import Comparison, compare_cells
from selective_t5x.errors import UserError
from selective_t5x.report import events, plots, tables
from selective_t5x.report.statistics import SEEDS_FOR_A_TEST
from selective_t5x.runs.files import read_json, write_json


def compare(
  gin_files: Sequence[str],
  variants: Sequence[plan.Variant],
  *,
  output_dir: str | os.PathLike,
  seeds: int | Mapping[str, int] = 1,
  first_seed: int = 0,
  gin_bindings: Sequence[str] = (),
  jobs: int = 1,
  program: Sequence[str] = training.MAIN,
  stopping: claims.Stopping | None = None,
  undecided: Callable[[Comparison], Iterable[str]] | None = None,
) -> Comparison:
  """Trains the missing runs of a comparison and writes its figures.

  output_dir then has a result folder per variant and seed, comparison.json (all
  figures), curves.csv, table.txt, learning_curves.png, and the curves as
  TensorBoard events.

  Args:
    gin_files: gin files that all variants share.
    variants: the first is the reference.
    output_dir: a local folder. Its finished runs are kept.
    seeds: number of seeds, or {variant: its number}; they are first_seed,
      first_seed + 1, ... for every variant. A reference has as many as any
      variant.
    first_seed: the first seed.
    gin_bindings: 'KEY = VALUE' texts for all runs.
    jobs: number of runs that train at a time.
    program: the command that runs a cell, see `training.run_cells`.
    stopping: if set, seeds are added to undecided variants and to their
      references until this rule ends it; at least three are trained.
    undecided: with `stopping`, returns the variants that need another seed;
      None: those whose difference to the reference is open.

  Returns:
    the figures, see `figures.compare_cells`.

  Raises:
    UserError: an argument or a configuration is wrong.
    training.CellError: runs failed. All other runs were finished first.
  """
  names = [variant.name for variant in variants]
  counts = dict.fromkeys(names, seeds) if isinstance(seeds, int) else {**seeds}
  if stopping:
    counts = {k: max(n, SEEDS_FOR_A_TEST) for k, n in counts.items()}

  def look() -> Comparison:
    runs = cells_of(
      gin_files, variants, counts, gin_bindings, output_dir, first_seed
    )
    quantities.check_resumable(runs)
    training.run_cells(runs, jobs=jobs, program=program)
    return compare_cells(runs, stopping)

  figures = look()
  undecided = undecided or claims.undecided
  while stopping and (
    more := _with_references(undecided(figures), figures, counts)
  ):
    counts |= {name: counts[name] + 1 for name in more}
    print(f'not decided yet, one more seed: {", ".join(more)}', flush=True)
    figures = look()
  folder = pathlib.Path(output_dir)
  write_json(folder / 'comparison.json', figures)
  (folder / 'curves.csv').write_text(
    tables.curves_csv(figures), encoding='utf-8'
  )
  (folder / 'table.txt').write_text(tables.as_text(figures), encoding='utf-8')
  curves = plots.png(plots.learning_curves(figures))
  (folder / 'learning_curves.png').write_bytes(curves)
  events.write(folder, figures, curves)
  return read_json(folder / 'comparison.json')


def cells_of(
  gin_files: Sequence[str],
  variants: Sequence[plan.Variant],
  counts: Mapping[str, int],
  gin_bindings: Sequence[str],
  output_dir: str | os.PathLike,
  first_seed: int = 0,
) -> list[plan.Cell]:
  """Returns the cells of variants with their own numbers of seeds.

  Args:
    gin_files: gin files that all variants share.
    variants: the first is the reference.
    counts: {variant: number of seeds}.
    gin_bindings: 'KEY = VALUE' texts for all runs.
    output_dir: a local folder.
    first_seed: the first seed of every variant.

  Raises:
    UserError: see `plan.make_cells`.
  """
  seeds = range(first_seed, first_seed + max(counts.values()))
  cells = plan.make_cells(gin_files, variants, seeds, gin_bindings, output_dir)
  return [
    cell for cell in cells if cell.seed - first_seed < counts[cell.variant]
  ]


def _with_references(
  names: Iterable[str], figures: Comparison, counts: Mapping[str, int]
) -> list[str]:
  """Returns the variants that get another seed, with their references."""
  most = figures['stopping']['max_seeds']
  names = [n for n in names if counts[n] < most]
  references = figures['references']
  # Another variant may have given a reference its seed already.
  needed = [n for n in names if counts[references[n]] <= counts[n]]
  return list(dict.fromkeys([*(references[n] for n in needed), *names]))


def add_stopping_flags(parser: argparse.ArgumentParser) -> None:
  """Adds --until_decided, --max_seeds and --margin."""
  parser.add_argument(
    '--until_decided',
    '--until-decided',
    action='store_true',
    help='add seeds until every difference of losses is decided',
  )
  parser.add_argument(
    '--max_seeds',
    type=int,
    default=None,
    metavar='N',
    help=f'with --until_decided: the most a variant, {claims.MAX_SEEDS}',
  )
  parser.add_argument(
    '--margin',
    type=float,
    default=None,
    metavar='NATS',
    help='with --until_decided: losses that differ by less are the same, '
    f'{claims.MARGIN}',
  )


def stopping_of(args: argparse.Namespace) -> claims.Stopping | None:
  """Returns the rule that the flags of `add_stopping_flags` declare.

  Raises:
    UserError: a flag has no effect, or its value is invalid.
  """
  flags = {k: getattr(args, k, None) for k in ('max_seeds', 'margin')}
  flags = {k: value for k, value in flags.items() if value is not None}
  if getattr(args, 'until_decided', False):
    stopping = dataclasses.replace(claims.Stopping(), **flags)
    if args.seeds > stopping.max_seeds:
      raise UserError(
        f'--seeds={args.seeds}: more than --max_seeds={stopping.max_seeds}'
      )
    return stopping
  for name in flags:
    raise UserError(f'--{name}: has no effect without --until_decided')
  return None


def of_flags(
  variants: Sequence[plan.Variant],
  args: argparse.Namespace,
  bindings: Sequence[str],
  gin_files: Sequence[str] = (),
) -> Comparison | None:
  """Trains the comparison of a command, or prints it for --dry_run.

  Args:
    variants: the first is the reference.
    args: --gin_file, --seeds, --output_dir, --jobs, --dry_run, and perhaps
      those of `add_stopping_flags`.
    bindings: 'KEY = VALUE' texts for all runs.
    gin_files: gin files that all variants share; --gin_file comes after them.

  Returns:
    the comparison, or None for --dry_run.
  """
  files = [*gin_files, *args.gin_file]
  stopping = stopping_of(args)
  if args.dry_run:
    seeds = range(args.seeds)
    runs = plan.make_cells(files, variants, seeds, bindings, args.output_dir)
    print(describe(runs, args.jobs))
    return None
  return compare(
    files,
    variants,
    output_dir=args.output_dir,
    seeds=args.seeds,
    gin_bindings=bindings,
    jobs=args.jobs,
    stopping=stopping,
  )


def describe(runs: Sequence[plan.Cell], jobs: int) -> str:
  """Returns the commands of runs and their differing bindings, as text."""
  lines = [f'{len(runs)} runs, {jobs} at a time']
  for run in runs:
    state = 'finished' if run.finished else 'to run'
    lines += [f'{run.name} ({state})', f'  {run.command}']
  for binding, values in plan.differences(runs).items():
    lines.append(binding)
    lines += [
      f'  {variant}: {"(not set)" if value is None else value}'
      for variant, value in values.items()
    ]
  return '\n'.join(lines)
