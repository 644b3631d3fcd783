r"""Trains variants with matched seeds and says how they differ.

  python -m selective_t5x.compare \
    --gin_file=gin/experiments/wikipedia_sample_lm.gin \
    --variant=baseline=gin/attention/baseline.gin \
    --variant=selective=gin/attention/selective.gin \
    --seeds=3 --output_dir=results/selective_or_not --gin.TRAIN_STEPS=600

The first variant is the reference. A variant is NAME=FILE or NAME=FILE,FILE;
its gin files come after the common ones, then the --gin.KEY=VALUE flags, and
--variant_gin.NAME.KEY=VALUE, for one variant, last.
--sweep="LEARNING_RATE=[0.001, 0.003]" trains all variants with each of these
values; given again, at each point of the grid. Started again, the same command
keeps what is finished and goes on with the rest.

Exit codes: 0 done; 1 a run failed; 2 something given is wrong, nothing was run;
75 stopped by SIGTERM, its runs have saved: the same command goes on.
"""

import argparse
import ast
import dataclasses
import os
import pathlib
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence

from selective_t5x.cli import failures
from selective_t5x.comparisons import plan as cells
from selective_t5x.comparisons import training as cell_runs
from selective_t5x.comparisons.figures import Comparison, compare_cells
from selective_t5x.errors import UserError, did_you_mean
from selective_t5x.report import (
  events,
  examples,
  memory,
  page,
  plots,
  tables,
  viewer,
)
from selective_t5x.runs import results

_VARIANT_GIN = '--variant_gin.'


def compare(
  gin_files: Sequence[str],
  variants: Sequence[cells.Variant],
  *,
  output_dir: str | os.PathLike,
  seeds: int = 1,
  gin_bindings: Sequence[str] = (),
  jobs: int = 1,
  program: Sequence[str] = cell_runs.MAIN,
) -> Comparison:
  """Trains what is missing of a comparison, and writes its figures.

  In output_dir: a result folder for each variant and seed, comparison.json (all
  figures), curves.csv, table.txt, learning_curves.png, and the curves as
  TensorBoard events.

  Args:
    gin_files: what all variants share.
    variants: the first is the reference.
    output_dir: a local folder; what is finished there is kept.
    seeds: how many; they are 0, 1, ... for every variant.
    gin_bindings: 'KEY = VALUE' texts for all runs.
    jobs: how many runs are trained at a time.
    program: what runs a cell, see `training.run_cells`.

  Returns:
    the figures, see `figures.compare_cells`.

  Raises:
    UserError: something given is wrong.
    cell_runs.CellError: runs failed; all others were finished first.
  """
  runs = cells.make_cells(
    gin_files, variants, range(seeds), gin_bindings, output_dir
  )
  cell_runs.run_cells(runs, jobs=jobs, program=program)
  figures = compare_cells(runs)
  folder = pathlib.Path(output_dir)
  results.write_json(folder / 'comparison.json', figures)
  (folder / 'curves.csv').write_text(
    tables.curves_csv(figures), encoding='utf-8'
  )
  (folder / 'table.txt').write_text(tables.as_text(figures), encoding='utf-8')
  curves = plots.png(plots.learning_curves(figures))
  (folder / 'learning_curves.png').write_bytes(curves)
  events.write(folder, figures, curves)
  return results.read_json(folder / 'comparison.json')


def parser(module: str, description: str) -> argparse.ArgumentParser:
  """Returns a parser with the flags of all commands that compare."""
  made = _Parser(
    prog=f'python -m {module}',
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  made.add_argument(
    '--gin_file',
    action='append',
    default=[],
    metavar='FILE',
    help='a gin file for all runs; give it again for more, in order',
  )
  made.add_argument(
    '--gin.KEY',  # For --help; `parse` reads them.
    action='append',
    metavar='VALUE',
    help='bind a gin macro or parameter in all runs, for any KEY',
  )
  made.add_argument('--output_dir', metavar='DIR', help='where all results go')
  made.add_argument(
    '--dry_run',
    action='store_true',
    help='print the runs and the bindings they differ in; run nothing',
  )
  return made


def add_jobs_flag(made: argparse.ArgumentParser) -> None:
  """Adds the flag of the commands that train what they compare."""
  made.add_argument(
    '--jobs',
    type=int,
    default=1,
    metavar='N',
    help='runs trained at a time, each in a process of its own',
  )


def parse(
  made: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
  """Returns the flags, and --gin.KEY=VALUE as 'KEY = VALUE' texts.

  Raises:
    UserError: a flag is unknown or has a value it cannot have.
  """
  bindings = [arg for arg in argv if arg.startswith('--gin.')]
  flags = [arg for arg in argv if not arg.startswith('--gin.')]
  for binding in bindings:
    if '=' not in binding:
      raise UserError(f'{binding}: expected {binding}=VALUE, in one word')
  args, unknown = made.parse_known_args(flags)
  if unknown:
    known = re.findall(r'--[\w.]+', made.format_usage())
    name = unknown[0].partition('=')[0]
    raise UserError(f'{name}: no such flag{did_you_mean(name, known)}')
  if 'jobs' in args:
    check_count('jobs', args.jobs)
  texts = [b.removeprefix('--gin.').replace('=', ' = ', 1) for b in bindings]
  return args, texts


def check_count(flag: str, value: int) -> None:
  """Raises UserError where the value of a flag is not 1 or more."""
  if value < 1:
    raise UserError(f'--{flag}={value}: expected 1 or more')


class _Parser(argparse.ArgumentParser):
  """Reports mistakes as all commands of the suite do."""

  def error(self, message):
    raise UserError(message)


def add_examples_flag(made: argparse.ArgumentParser) -> None:
  """Adds the flag of commands whose page has the masking viewer."""
  made.add_argument(
    '--examples',
    type=_row_count,
    default=3,
    metavar='N',
    help='rows in the masking viewer, of all selective variants; 0 for none',
  )


def _row_count(text: str) -> int:
  if not text.isdigit():
    raise argparse.ArgumentTypeError(f'{text!r}, expected 0 or more')
  return int(text)


def masking_viewer(
  comparisons: Sequence[tuple[str, pathlib.Path, Comparison]], count: int
) -> list[str]:
  """Returns the viewer as parts of a page, see `report.examples.collect`.

  Args:
    comparisons: of the page: name, folder and figures of each.
    count: rows; 0 for none.
  """
  models = examples.collect(comparisons, count) if count else {}
  if not models:
    return []
  return [f'<h2>What selection masks</h2>\n{viewer.section(models)}']


def command_line() -> str:
  """Returns the shell command that this process was started with."""
  return shlex.join(['python', *sys.orig_argv[1:]])


def describe(runs: Sequence[cells.Cell], jobs: int) -> str:
  """Returns the commands of runs and the bindings they differ in."""
  lines = [f'{len(runs)} runs, {jobs} at a time']
  for run in runs:
    state = 'finished' if run.finished else 'to run'
    lines += [f'{run.name} ({state})', f'  {run.command}']
  for binding, values in cells.differences(runs).items():
    lines.append(binding)
    lines += [
      f'  {variant}: {"(not set)" if value is None else value}'
      for variant, value in values.items()
    ]
  return '\n'.join(lines)


def run_command(main: Callable[[Sequence[str]], None]) -> None:
  """Runs a command's main function; turns errors into lines and exit codes."""
  # As with Ctrl-C: the runs in progress are ended too, and save.
  failures.stop_at_sigterm()
  try:
    main(sys.argv[1:])
  except cell_runs.CellError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(1)
  except KeyboardInterrupt:
    print('stopped; the same command goes on from here', file=sys.stderr)
    sys.exit(128 + signal.SIGINT)
  except Exception as error:
    line = failures.one_line(error)
    if not line:
      raise
    print(f'error: {line}', file=sys.stderr)
    sys.exit(2 if isinstance(error, UserError) else 1)


def main(argv: Sequence[str]) -> None:
  """Runs `python -m selective_t5x.compare`."""
  made = parser('selective_t5x.compare', __doc__)
  add_jobs_flag(made)
  made.add_argument(
    '--variant',
    action='append',
    default=[],
    metavar='NAME=FILES',
    help='a variant and its gin files, with commas; the first is the reference',
  )
  made.add_argument(
    '--variant_gin.NAME.KEY',  # For --help; `_with_bindings` reads them.
    action='append',
    metavar='VALUE',
    help='bind a gin macro or parameter in the runs of one variant',
  )
  made.add_argument(
    '--sweep',
    action='append',
    default=[],
    metavar='KEY=[VALUE, ...]',
    help='all variants with each of the values; give it again for a grid',
  )
  made.add_argument(
    '--seeds', type=int, default=1, metavar='N', help='seeds a variant'
  )
  made.add_argument(
    '--frontier',
    metavar='DIR',
    help='of selective_t5x.pruning.frontier, to show on the page',
  )
  add_examples_flag(made)
  of_one = [arg for arg in argv if arg.startswith(_VARIANT_GIN)]
  args, bindings = parse(made, [arg for arg in argv if arg not in of_one])
  for name in ('gin_file', 'variant', 'output_dir'):
    if not getattr(args, name):
      raise UserError(f'no --{name}: it is needed; --help has an example')
  check_count('seeds', args.seeds)
  curves = args.frontier and memory.read(args.frontier)
  variants = [_variant(text) for text in args.variant]
  variants = _with_bindings(variants, of_one)
  variants = cells.sweep(variants, dict(map(_swept, args.sweep)))
  if args.dry_run:
    runs = cells.make_cells(
      args.gin_file, variants, range(args.seeds), bindings, args.output_dir
    )
    print(describe(runs, args.jobs))
    return
  figures = compare(
    args.gin_file,
    variants,
    output_dir=args.output_dir,
    seeds=args.seeds,
    gin_bindings=bindings,
    jobs=args.jobs,
  )
  folder = pathlib.Path(args.output_dir)
  report = folder / 'report.html'
  references = dict.fromkeys(figures['references'].values())
  others = [name for name in figures['variants'] if name not in references]
  report.write_text(
    page.page(
      title=f'{", ".join(others) or "nothing"} against {", ".join(references)}',
      intro=f'Trained from {", ".join(args.gin_file)}.',
      command=command_line(),
      sections=[page.Section('Results', '', figures)],
      more=[
        *([memory.section(curves)] if curves else []),
        *masking_viewer([('', folder, figures)], args.examples),
      ],
    ),
    encoding='utf-8',
  )
  print(tables.as_text(figures))
  print(f'{report} shows this with plots.')


def _variant(text: str) -> cells.Variant:
  name, equals, files = text.partition('=')
  if not equals:
    raise UserError(f'--variant={text}: expected NAME=FILE or NAME=FILE,FILE')
  return cells.Variant(name, tuple(filter(None, files.split(','))))


def _with_bindings(
  variants: Sequence[cells.Variant], flags: Sequence[str]
) -> list[cells.Variant]:
  """Returns the variants with what --variant_gin.NAME.KEY=VALUE flags bind."""
  bindings = {variant.name: list(variant.gin_bindings) for variant in variants}
  for flag in flags:
    left, equals, value = flag.removeprefix(_VARIANT_GIN).partition('=')
    # A variant's name may have dots, as a key may.
    names = [name for name in bindings if left.startswith(f'{name}.')]
    if not names:
      nearest = did_you_mean(left.partition('.')[0], bindings)
      raise UserError(f'{flag}: no variant of this name{nearest}')
    name = max(names, key=len)
    if not equals:
      raise UserError(f'{flag}: expected {flag}=VALUE, in one word')
    bindings[name].append(f'{left.removeprefix(name)[1:]} = {value}')
  return [
    dataclasses.replace(v, gin_bindings=tuple(bindings[v.name]))
    for v in variants
  ]


def _swept(text: str) -> tuple[str, list]:
  """Returns the key and the values of a --sweep."""
  key, _, values = text.partition('=')
  try:
    found = ast.literal_eval(values.strip())
  except (ValueError, SyntaxError):
    found = None
  if not key.strip() or not isinstance(found, list) or not found:
    raise UserError(
      f'--sweep={text}: expected a gin macro or parameter and a list of plain '
      'values, LEARNING_RATE=[0.001, 0.003]'
    )
  return key.strip(), found


if __name__ == '__main__':
  run_command(main)
