r"""Trains a run of kept figures again and compares what it measured.

  python -m selective_t5x.studies.verify docs/studies/fast --draw=0

It draws one run of all comparisons below the folder, trains it by its own
command in --output_dir, and compares the last evaluation of every task with the
kept figures of that variant and seed: to the bit, unless --tolerance allows a
difference (relative, for another device or another version of JAX). It also
names every fingerprint that changed: gin bindings, training data, program. The
same --draw draws the same run, and the same command resumes it; a finished one
in --output_dir is compared as it is.
--cell=COMPARISON/VARIANT-seedN takes that run.

The last line printed is JSON. Exit codes: 0 the figures are the same; 1 a
figure differs, or the run failed; 2 a flag is wrong.
"""

import dataclasses
import json
import math
import pathlib
import random
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

from selective_t5x.cli import exits, flags
from selective_t5x.comparisons import plan, training
from selective_t5x.config.session import Session
from selective_t5x.errors import RunError, UserError, did_you_mean
from selective_t5x.runs import fingerprints
from selective_t5x.runs.files import SUMMARY_FILE, read_json, write_json
from selective_t5x.runs.record import read_runs
from selective_t5x.runs.summary import read_summary, write_summary

NAME = 'verify'
_COMPARISON = 'comparison.json'
_RECORD = 'verify.json'
_MODEL_DIR = '--gin.MODEL_DIR='


@dataclasses.dataclass(frozen=True)
class KeptRun:
  """A run whose figures are kept.

  Attributes:
    name: COMPARISON/VARIANT-seedN.
    record: its entry in 'cells' of the comparison.
    figures: {(task, metric): value} of its last evaluations.
  """

  name: str
  record: dict[str, Any]
  figures: dict[tuple[str, str], float | None]


def kept_runs(folder: pathlib.Path) -> list[KeptRun]:
  """Returns all runs of the comparisons in a folder and below it.

  Raises:
    UserError: there is none.
  """
  runs = []
  for path in sorted(folder.rglob(_COMPARISON)):
    comparison = read_json(path)
    name = str(path.parent.relative_to(folder))
    prefix = '' if name == '.' else f'{name}/'
    for record in comparison['cells']:
      runs.append(
        KeptRun(
          prefix + record['name'], record, dict(_figures(comparison, record))
        )
      )
  if not runs:
    raise UserError(f'{folder}: no {_COMPARISON} in it or below it')
  return runs


def _figures(comparison, record) -> Iterator[tuple[tuple[str, str], Any]]:
  """Yields ((task, metric), value) of one run."""
  seeds = comparison['seeds']
  for result in comparison['results']:
    if result['variant'] == record['variant']:
      for metric, spread in result['metrics'].items():
        value = spread['values'][seeds.index(record['seed'])]
        yield (result['task'], metric), value


def choose(
  runs: Sequence[KeptRun], draw: int, name: str | None = None
) -> KeptRun:
  """Returns the run of a name, or draws one.

  Args:
    runs: all runs.
    draw: the seed of the draw.
    name: a name; None: draw.

  Raises:
    UserError: no run has this name.
  """
  if name is None:
    return random.Random(draw).choice(list(runs))
  by_name = {run.name: run for run in runs}
  if name not in by_name:
    raise UserError(f'--cell={name}: no such run{did_you_mean(name, by_name)}')
  return by_name[name]


def arguments(run: KeptRun, folder: pathlib.Path) -> list[str]:
  """Returns the flags of `python -m selective_t5x.main` for another folder."""
  words = shlex.split(run.record['command'])
  own = [w for w in words[3:] if not w.startswith(_MODEL_DIR)]
  return [*own, f'{_MODEL_DIR}{str(folder)!r}']


def differences(
  recorded: KeptRun, summary: dict[str, Any], tolerance: float
) -> list[str]:
  """Returns a line for every figure that differs.

  Args:
    recorded: the run and its figures.
    summary: see `summary.summarize`, of the new run.
    tolerance: the largest relative difference; 0: the same bits.
  """
  lines = []
  for (task, metric), there in recorded.figures.items():
    last = summary['training_eval'].get(task, {}).get('last', {})
    here = last.get(metric)
    if there is None or here is None:
      same = there is here
    elif tolerance:
      same = math.isclose(there, here, rel_tol=tolerance)
    else:
      same = there == here
    if not same:
      lines.append(f'{task} {metric}: {there!r} is recorded, {here!r} measured')
  return lines


def changed_fingerprints(
  recorded: KeptRun, folder: pathlib.Path, argv: Sequence[str]
) -> list[str]:
  """Returns a line for every fingerprint that is not what was recorded."""
  there = recorded.record.get('fingerprints')
  if not there:
    return ['the kept run has no fingerprints: an earlier version trained it']
  here = fingerprints.of_run(folder, _bindings(argv))
  return [
    f'{name}: {there.get(name)} is recorded, {here[name]} now'
    for name in here
    if there.get(name) != here[name]
  ]


def _bindings(argv: Sequence[str]) -> dict[str, str]:
  """Returns {key: gin value} of a run's flags, without its folder."""
  bindings, rest = flags.gin_bindings(argv)
  files = [
    word.partition('=')[2] for word in rest if word.startswith('--gin_file=')
  ]
  bound = dict(plan.bindings_of(Session(files, bindings).config))
  bound.pop('MODEL_DIR', None)
  return bound


def retrain(
  argv: Sequence[str], folder: pathlib.Path, program: Sequence[str]
) -> dict[str, Any]:
  """Trains a run, unless it is finished; returns its summary.

  Raises:
    UserError: the folder has another run.
    RunError: it failed.
  """
  folder.mkdir(parents=True, exist_ok=True)
  record, here = folder / _RECORD, {'arguments': list(argv)}
  if record.exists() and read_json(record) != here:
    raise UserError(f'{folder}: has another run; give another --output_dir')
  write_json(record, here)
  if not (folder / SUMMARY_FILE).exists():
    log = folder / plan.LOG_FILE
    with open(log, 'ab') as file:
      code = subprocess.run(
        [*program, *argv], stdout=file, stderr=file, stdin=subprocess.DEVNULL
      ).returncode
    if code:
      raise RunError(f'the run failed with exit code {code}; its log is {log}')
    write_summary(folder)
  return read_summary(folder)


def verify(
  recorded: KeptRun,
  output_dir: pathlib.Path,
  *,
  tolerance: float = 0.0,
  program: Sequence[str] = training.MAIN,
) -> dict[str, Any]:
  """Trains a run again and compares its figures.

  Returns:
    cell, figures (their number), tolerance, commit (of the new run),
    differences and fingerprints: lines on what changed.
  """
  folder = output_dir / recorded.name
  argv = arguments(recorded, folder)
  summary = retrain(argv, folder, program)
  return {
    'cell': recorded.name,
    'figures': len(recorded.figures),
    'tolerance': tolerance,
    'commit': (read_runs(folder)[-1].get('git') or {}).get('commit'),
    'differences': differences(recorded, summary, tolerance),
    'fingerprints': changed_fingerprints(recorded, folder, argv),
  }


def main(argv: Sequence[str], program: Sequence[str] = training.MAIN) -> None:
  """Runs `python -m selective_t5x.studies.verify`."""
  parser = flags.parser(f'selective_t5x.studies.{NAME}', __doc__)
  parser.add_argument('study', metavar='STUDY', help='folder of kept figures')
  parser.add_argument(
    '--draw', type=int, default=0, metavar='N', help='seed of the random choice'
  )
  parser.add_argument('--cell', metavar='NAME', help='the run; default: drawn')
  parser.add_argument(
    '--tolerance',
    type=float,
    default=0.0,
    metavar='X',
    help='largest relative difference; 0, the default: the same bits',
  )
  parser.add_argument('--output_dir', default=f'results/{NAME}', metavar='DIR')
  args, bindings = flags.parse(parser, argv)
  if bindings or args.gin_file:
    raise UserError('--gin_file and --gin.KEY: the kept command has its own')
  if args.tolerance < 0:
    raise UserError(f'--tolerance={args.tolerance}: expected 0 or more')
  recorded = choose(kept_runs(pathlib.Path(args.study)), args.draw, args.cell)
  print(f'{recorded.name}: {recorded.record["command"]}', flush=True)
  result = verify(
    recorded,
    pathlib.Path(args.output_dir),
    tolerance=args.tolerance,
    program=program,
  )
  for line in (*result['fingerprints'], *result['differences']):
    print(line)
  print(json.dumps(result))
  if result['differences']:
    raise RunError(
      f'{recorded.name}: {len(result["differences"])} of {result["figures"]} '
      f'figures are not what is recorded: {result["differences"][0]}'
    )


if __name__ == '__main__':
  exits.run_main(main)
