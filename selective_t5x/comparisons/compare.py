"""Trains the missing runs of a comparison and writes its figures."""

import argparse
import os
import pathlib
from collections.abc import Sequence

from selective_t5x.comparisons import plan, quantities, training
from selective_t5x.comparisons.figures import Comparison, compare_cells
from selective_t5x.report import events, plots, tables
from selective_t5x.runs.files import read_json, write_json


def compare(
  gin_files: Sequence[str],
  variants: Sequence[plan.Variant],
  *,
  output_dir: str | os.PathLike,
  seeds: int = 1,
  gin_bindings: Sequence[str] = (),
  jobs: int = 1,
  program: Sequence[str] = training.MAIN,
) -> Comparison:
  """Trains the missing runs of a comparison and writes its figures.

  output_dir then has a result folder per variant and seed, comparison.json (all
  figures), curves.csv, table.txt, learning_curves.png, and the curves as
  TensorBoard events.

  Args:
    gin_files: gin files that all variants share.
    variants: the first is the reference.
    output_dir: a local folder. Its finished runs are kept.
    seeds: number of seeds; they are 0, 1, ... for every variant.
    gin_bindings: 'KEY = VALUE' texts for all runs.
    jobs: number of runs that train at a time.
    program: the command that runs a cell, see `training.run_cells`.

  Returns:
    the figures, see `figures.compare_cells`.

  Raises:
    UserError: an argument or a configuration is wrong.
    training.CellError: runs failed. All other runs were finished first.
  """
  runs = plan.make_cells(
    gin_files, variants, range(seeds), gin_bindings, output_dir
  )
  quantities.check_resumable(runs)
  training.run_cells(runs, jobs=jobs, program=program)
  figures = compare_cells(runs)
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


def of_flags(
  variants: Sequence[plan.Variant],
  args: argparse.Namespace,
  bindings: Sequence[str],
  gin_files: Sequence[str] = (),
) -> Comparison | None:
  """Trains the comparison of a command, or prints it for --dry_run.

  Args:
    variants: the first is the reference.
    args: --gin_file, --seeds, --output_dir, --jobs and --dry_run.
    bindings: 'KEY = VALUE' texts for all runs.
    gin_files: gin files that all variants share; --gin_file comes after them.

  Returns:
    the comparison, or None for --dry_run.
  """
  files = [*gin_files, *args.gin_file]
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
