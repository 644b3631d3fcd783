r"""Tests the claims of the papers: trains, searches, and gives verdicts.

  python -m selective_t5x.studies.reproduction --fast

selective_t5x.studies.claims and .experiments declare the claims, the
experiments and the rules of verdicts. An experiment is a comparison
(selective_t5x.compare) with a folder in --output_dir. The same command resumes
an interrupted study. --fast trains language models for 250 steps and shares
runs of the same settings with the whole study. If a run fails, the other
experiments continue.

Verdicts are corrected for the number of claims, see selective_t5x.studies
.evidence. --until_decided adds seeds to the models of undecided claims.

study.json and study.md (fast.json and fast.md with --fast) have all decided
claims of the folder with verdicts and numbers. The last line printed has those
of this command: {claim: {"verdict": ...}}.
"""

import argparse
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from selective_t5x.cli import exits
from selective_t5x.comparisons import compare, plan, training
from selective_t5x.errors import UserError
from selective_t5x.report.statistics import SEEDS_FOR_A_TEST
from selective_t5x.runs.files import SUMMARY_FILE, write_json
from selective_t5x.runs.record import write_run_record
from selective_t5x.studies import (
  command,
  evidence,
  keep,
  page,
  pruning,
  token_transition,
)
from selective_t5x.studies.claims import Claim
from selective_t5x.studies.evidence import UNDECIDED, Verdict
from selective_t5x.studies.experiments import (
  EXPERIMENTS,
  PRUNED,
  PRUNING,
  TOKEN_TRANSITION,
)
from selective_t5x.studies.record import Record, choose, summary

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
    self._claims, self._args, self._bindings = claims, args, gin_bindings
    self._folder = pathlib.Path(args.output_dir)
    self._stopping = compare.stopping_of(args)
    self._least = args.seeds
    if self._stopping:
      self._least = max(self._least, SEEDS_FOR_A_TEST)
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
    # {experiment: {variant: number of seeds}}
    self._counts = {
      name: {variant.name: self._least for variant in of_experiment}
      for name, of_experiment in self._variants.items()
    }
    # All are checked before the first is trained.
    self.runs = {
      name: plan.make_cells(seeds=range(self._least), **self._arguments(name))
      for name in variants
    }

  def _finished(self, name: str, variant: plan.Variant) -> bool:
    """Whether an earlier command trained a variant with all seeds."""
    folder = self._folder / name
    return all(
      (folder / plan.folder_name(variant.name, seed) / SUMMARY_FILE).exists()
      for seed in range(self._least)
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

  def verdicts(self, name: str | None, record: Record) -> dict[str, Verdict]:
    """Runs or resumes an experiment; returns the verdicts of its claims.

    With --until_decided, seeds are added until the claims are decided at the
    corrected level, given the verdicts that the record has.

    Raises:
      training.CellError: a run failed.
    """
    claims = {n: c for n, c in self._claims.items() if c.experiment == name}

    def judge(figures: Any) -> dict[str, Verdict]:
      return {
        n: c.rule.judge(figures, sequential=self._stopping is not None)
        for n, c in claims.items()
      }

    def undecided(figures: Any) -> list[str]:
      verdicts = record.corrected(judge(figures))
      names = [n for n in claims if verdicts[n].verdict == UNDECIDED]
      rules = [claims[n].rule for n in names if claims[n].rule.tests]
      variants = dict.fromkeys(v for rule in rules for v in rule.variants)
      return list(variants) or [rule.name for rule in rules]

    return judge(self._figures(name, undecided))

  def _figures(
    self, name: str | None, undecided: Callable[[Any], list[str]]
  ) -> Any:
    """Returns the figures of an experiment for its rules.

    Args:
      name: the experiment; None: none is needed.
      undecided: returns the variants of undecided claims.
    """
    if name is None:
      return None
    if name == TOKEN_TRANSITION:
      transitions = token_transition.measure_all()
      write_json(self._folder / f'{name}.json', transitions)
      return transitions
    if name == PRUNING:
      figures = self._points(self._least)
      while (
        self._stopping
        and len(figures) < self._stopping.max_seeds
        and undecided(figures)
      ):
        figures = self._points(len(figures) + 1)
      return figures
    return self._compared(name, self._stopping, undecided)

  def _compared(self, name, stopping=None, undecided=None):
    """Returns a comparison; its variants may get more seeds."""
    figures = compare.compare(
      seeds=self._counts[name],
      jobs=self._args.jobs,
      stopping=stopping,
      undecided=undecided,
      **self._arguments(name),
    )
    self._counts[name] = figures['seeds_of']
    return figures

  def _points(self, seeds: int) -> list[dict[str, Any]]:
    """Returns the best points of the searches of each seed's models."""
    counts = self._counts[PRUNED]
    for variant in pruning.VARIANTS:
      counts[variant.name] = max(counts[variant.name], seeds)
    self._compared(PRUNED)
    return [
      pruning.best_points(
        pruning.search_seed(self._folder / PRUNED, seed, _BATCHES, _BATCHES)
      )
      for seed in range(seeds)
    ]


def main(argv: Sequence[str]) -> None:
  """Runs `python -m selective_t5x.studies.reproduction`."""
  args, bindings = command.parse(NAME, __doc__, argv, _add_flags)
  claims = choose(args.fast, args.claims)
  if args.undecided_in:
    claims = undecided_in(pathlib.Path(args.undecided_in), claims)
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
      judged = study.verdicts(experiment, record)
    except training.CellError as error:
      failures.append(f'{experiment}: {error}')
      print(f'error: {failures[-1]}')
      continue
    # Verdicts of other experiments may follow from the new ones.
    verdicts = record.write(claims, judged)
    for claim in judged:
      verdict = verdicts[claim]
      print(
        f'{claim}: {verdict.verdict}; {evidence.in_words(verdict)}', flush=True
      )
  if args.keep:
    keep.keep(folder, pathlib.Path(args.keep))
  if failures:
    raise training.CellError('; '.join(failures))
  print(f'{record.table} is a table. Took {record.minutes:.1f} minutes.')
  print(json.dumps(summary({name: verdicts[name] for name in claims})))


def undecided_in(
  studies: pathlib.Path, claims: Mapping[str, Claim]
) -> dict[str, Claim]:
  """Returns the claims that kept figures do not decide.

  Args:
    studies: the folder of the figures, see `keep`.
    claims: the claims to choose from.

  Raises:
    UserError: the folder is missing, or its figures decide all of them.
  """
  if not studies.is_dir():
    raise UserError(f'--undecided_in={studies}: no such folder')
  _, verdicts = page.decided(studies)
  rest = {
    name: claim
    for name, claim in claims.items()
    if name not in verdicts or verdicts[name].verdict == UNDECIDED
  }
  if not rest:
    raise UserError(f'--undecided_in={studies}: its figures decide all claims')
  return rest


def _add_flags(parser: argparse.ArgumentParser) -> None:
  compare.add_stopping_flags(parser)
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
    '--undecided_in',
    metavar='DIR',
    help='only claims that the figures kept there leave undecided or lack',
  )
  parser.add_argument(
    '--keep',
    metavar='DIR',
    help='at the end, copy figures and tables there, see studies.keep',
  )


if __name__ == '__main__':
  exits.run_main(main)
