r"""Tests the claims of the papers: trains, searches, and gives verdicts.

  python -m selective_t5x.studies.reproduction --fast

selective_t5x.studies.claims and .experiments declare the claims, the
experiments and the rules of verdicts. An experiment is a comparison
(selective_t5x.compare) with a folder in --output_dir. The same command resumes
an interrupted study. --fast trains language models for 250 steps and shares
runs of the same settings with the whole study. If a run fails, the other
experiments continue.

study.json and study.md (fast.json and fast.md with --fast) have all decided
claims of the folder with verdicts and numbers. The last line printed has those
of this command: {claim: {"verdict": ...}}.
"""

import argparse
import dataclasses
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from selective_t5x.cli import exits, flags
from selective_t5x.comparisons import compare, plan, training
from selective_t5x.errors import UserError, did_you_mean
from selective_t5x.runs.files import SUMMARY_FILE, read_json, write_json
from selective_t5x.runs.record import write_run_record
from selective_t5x.studies import command, keep, pruning, token_transition
from selective_t5x.studies.claims import CLAIMS, Claim
from selective_t5x.studies.experiments import (
  EXPERIMENTS,
  PRUNED,
  PRUNING,
  TOKEN_TRANSITION,
)
from selective_t5x.studies.verdicts import Verdict

NAME = 'study'
_BATCHES = 8  # For each of the two splits of a search, see `pruning`.


class Study:
  """The experiments of some claims; each runs when its figures are needed."""

  def __init__(
    self,
    claims: Mapping[str, Claim],
    args: argparse.Namespace,
    gin_bindings: Sequence[str],
  ):
    """Checks the runs of claims, with the flags and bindings of `main`.

    Raises:
      UserError: a configuration is invalid.
    """
    self._args, self._bindings = args, gin_bindings
    self._folder = pathlib.Path(args.output_dir)
    variants: dict[str, set[str]] = {}
    for claim in claims.values():
      if claim.experiment == PRUNING:
        names = {variant.name for variant in pruning.VARIANTS}
        variants.setdefault(PRUNED, set()).update(names)
      elif claim.experiment in EXPERIMENTS:
        variants.setdefault(claim.experiment, set()).update(claim.rule.variants)
    self._variants = {
      name: [
        variant
        for variant in EXPERIMENTS[name].variants
        if variant.name in names or self._finished(name, variant)
      ]
      for name, names in variants.items()
    }
    # All are checked before the first is trained.
    self.runs = {
      name: plan.make_cells(seeds=range(args.seeds), **self._arguments(name))
      for name in variants
    }

  def _finished(self, name: str, variant: plan.Variant) -> bool:
    """Whether an earlier command trained a variant with all seeds."""
    folder = self._folder / name
    return all(
      (folder / plan.folder_name(variant.name, seed) / SUMMARY_FILE).exists()
      for seed in range(self._args.seeds)
    )

  def _arguments(self, name: str) -> dict[str, Any]:
    """Returns the arguments of a comparison."""
    experiment = EXPERIMENTS[name]
    return {
      'gin_files': [*experiment.gin_files, *self._args.gin_file],
      'variants': self._variants[name],
      'gin_bindings': [*experiment.gin_bindings, *self._bindings],
      'output_dir': self._folder / name,
    }

  def figures(self, name: str | None) -> Any:
    """Runs or resumes an experiment; returns the figures for its rules.

    Raises:
      training.CellError: a run failed.
    """
    if name is None:
      return None
    if name == TOKEN_TRANSITION:
      transitions = token_transition.measure_all()
      write_json(self._folder / f'{name}.json', transitions)
      return transitions
    if name == PRUNING:
      self.figures(PRUNED)
      return [
        pruning.best_points(
          pruning.search_seed(self._folder / PRUNED, seed, _BATCHES, _BATCHES)
        )
        for seed in range(self._args.seeds)
      ]
    return compare.compare(
      seeds=self._args.seeds, jobs=self._args.jobs, **self._arguments(name)
    )


def main(argv: Sequence[str]) -> None:
  """Runs `python -m selective_t5x.studies.reproduction`."""
  args, bindings = command.parse(NAME, __doc__, argv, _add_flags)
  claims = choose(args.fast, args.claims)
  study = Study(claims, args, bindings)
  if args.dry_run:
    for name, runs in study.runs.items():
      print(f'{name}: {compare.describe(runs, args.jobs)}\n')
    return
  folder = pathlib.Path(args.output_dir)
  write_run_record(folder, run_mode='study', seed=None)
  record = Record(folder / ('fast' if args.fast else 'study'), args)
  verdicts: dict[str, Verdict] = {}
  failures = []
  for experiment in dict.fromkeys(c.experiment for c in claims.values()):
    try:
      figures = study.figures(experiment)
    except training.CellError as error:
      failures.append(f'{experiment}: {error}')
      print(f'error: {failures[-1]}')
      continue
    for claim in (n for n, c in claims.items() if c.experiment == experiment):
      verdicts[claim] = verdict = claims[claim].rule.judge(figures)
      print(f'{claim}: {verdict.verdict}; {verdict.text}', flush=True)
    record.write(claims, verdicts)
  if args.keep:
    keep.keep(folder, pathlib.Path(args.keep))
  if failures:
    raise training.CellError('; '.join(failures))
  print(f'{record.table} is a table. Took {record.minutes:.1f} minutes.')
  print(json.dumps(summary({name: verdicts[name] for name in claims})))


def choose(fast: bool, names: str | None = None) -> dict[str, Claim]:
  """Returns the claims to decide, with their experiments in this mode.

  Args:
    fast: whether this is `make study-fast`.
    names: comma-separated names of claims; None: all.

  Raises:
    UserError: there is no such claim.
  """
  known = of_mode(fast)
  if names is None:
    return {n: c for n, c in known.items() if c.in_fast or not fast}
  for name in names.split(','):
    if name not in known:
      where = ' with --fast' if fast else ''
      raise UserError(
        f'--claims: no claim {name!r}{where}{did_you_mean(name, known)}'
      )
  return {name: known[name] for name in names.split(',')}


def of_mode(fast: bool) -> dict[str, Claim]:
  """Returns all claims of a mode, with their experiments in it."""
  if not fast:
    return CLAIMS
  return {
    name: dataclasses.replace(claim, experiment=claim.fast)
    for name, claim in CLAIMS.items()
    if claim.fast
  }


class Record:
  """The verdicts of a folder, written as JSON and as a table.

  Attributes:
    table: path of the table in Markdown.
  """

  def __init__(self, stem: pathlib.Path, args: argparse.Namespace):
    """Reads the earlier verdicts if they have the same number of seeds.

    Args:
      stem: path of both files without the suffix.
      args: the flags of the command.
    """
    self._json, self.table = stem.with_suffix('.json'), stem.with_suffix('.md')
    self._args, self._started = args, time.monotonic()
    self._verdicts: dict[str, Verdict] = {}
    self._minutes = 0.0
    if not self._json.exists():
      return
    earlier = read_json(self._json)
    if earlier['seeds'] == args.seeds:
      self._minutes = earlier['minutes']
      for name, figures in earlier['claims'].items():
        verdict, text = figures.pop('verdict'), figures.pop('text')
        self._verdicts[name] = Verdict(verdict, text, figures)

  @property
  def minutes(self) -> float:
    """The total time of this command and of earlier ones."""
    return self._minutes + (time.monotonic() - self._started) / 60

  def write(
    self, claims: Mapping[str, Claim], verdicts: Mapping[str, Verdict]
  ) -> None:
    """Adds verdicts. The table has all `claims`, even undecided ones."""
    self._verdicts.update(verdicts)
    known = of_mode(self._args.fast)
    decided = {n: self._verdicts[n] for n in known if n in self._verdicts}
    write_json(
      self._json,
      {
        'command': flags.command_line(),
        'seeds': self._args.seeds,
        'minutes': self.minutes,
        'claims': {
          name: {'text': decided[name].text, **figures}
          for name, figures in summary(decided).items()
        },
      },
    )
    rows = {n: c for n, c in known.items() if n in claims or n in decided}
    self.table.write_text(as_markdown(rows, decided), 'utf-8')


def summary(verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
  """Returns {claim: {'verdict': ..., name of a number: number}}."""
  return {
    name: {'verdict': verdict.verdict, **verdict.numbers}
    for name, verdict in verdicts.items()
  }


def as_markdown(
  claims: Mapping[str, Claim], verdicts: Mapping[str, Verdict]
) -> str:
  """Returns a Markdown table with one row per claim."""
  lines = [
    '| claim | what is said | source | experiment | here | verdict '
    "| at the paper's scale |",
    '| --- | --- | --- | --- | --- | --- | --- |',
  ]
  for name, claim in claims.items():
    verdict = verdicts.get(name)
    row = (
      f'`{name}`',
      claim.statement,
      claim.source,
      claim.experiment or '',
      verdict.text if verdict else '',
      f'**{verdict.verdict}**' if verdict else 'not run',
      claim.paper_scale,
    )
    lines.append(f'| {" | ".join(row)} |')
  return '\n'.join(lines) + '\n'


def _add_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    '--fast',
    action='store_true',
    help='a part of the claims; language models of 250 steps',
  )
  parser.add_argument(
    '--claims',
    metavar='NAME,NAME',
    help='these claims alone; with --fast also others than its own',
  )
  parser.add_argument(
    '--keep',
    metavar='DIR',
    help='at the end, copy figures and tables there, see studies.keep',
  )


if __name__ == '__main__':
  exits.run_main(main)
