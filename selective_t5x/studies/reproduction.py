r"""Which claims of the papers hold here: trains, searches, and gives verdicts.

  python -m selective_t5x.studies.reproduction --fast

The claims, their experiments and the rules of their verdicts are declared in
selective_t5x.studies.claims. Each experiment is a comparison
(selective_t5x.compare), a folder in --output_dir. Started again, the same
command keeps what is finished and goes on with the rest; --fast, with language
models of 250 steps, shares what has the same settings with the whole study.
Where a run fails, the other experiments go on.

study.json and study.md, with --fast fast.json and fast.md, have every claim
with its verdict and numbers; the last line printed is
{claim: {"verdict": ...}}.
"""

import argparse
import dataclasses
import json
import pathlib
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

from selective_t5x import cell_runs, cells, compare, results
from selective_t5x.errors import UserError, did_you_mean
from selective_t5x.studies import command, pruning, token_transition
from selective_t5x.studies.claims import (
  CLAIMS,
  EXPERIMENTS,
  PRUNED,
  PRUNING,
  TOKEN_TRANSITION,
  Claim,
)
from selective_t5x.studies.verdicts import Verdict

NAME = 'study'
# What --keep copies.
_KEPT = ('*.json', '*.jsonl', '*.md', 'table.txt', 'learning_curves.png')
_BATCHES = 8  # For each of the two splits of a search, see `pruning`.


class Study:
  """The experiments of some claims, run as they are asked for."""

  def __init__(
    self,
    claims: Mapping[str, Claim],
    args: argparse.Namespace,
    gin_bindings: Sequence[str],
  ):
    """Takes claims, and the flags and bindings of `main`; runs nothing.

    Raises:
      UserError: a configuration cannot be.
    """
    self._args, self._bindings = args, gin_bindings
    self._folder = pathlib.Path(args.output_dir)
    wanted: dict[str, set[str]] = {}
    for claim in claims.values():
      if claim.experiment == PRUNING:
        names = {variant.name for variant in pruning.VARIANTS}
        wanted.setdefault(PRUNED, set()).update(names)
      elif claim.experiment in EXPERIMENTS:
        wanted.setdefault(claim.experiment, set()).update(claim.rule.variants)
    self._variants = {
      name: [v for v in EXPERIMENTS[name].variants if v.name in names]
      for name, names in wanted.items()
    }
    # All are checked before the first is trained.
    self.runs = {
      name: cells.make_cells(seeds=range(args.seeds), **self._of(name))
      for name in wanted
    }

  def _of(self, name: str) -> dict[str, Any]:
    """Returns the arguments of a comparison."""
    experiment = EXPERIMENTS[name]
    return {
      'gin_files': [*experiment.gin_files, *self._args.gin_file],
      'variants': self._variants[name],
      'gin_bindings': [*experiment.gin_bindings, *self._bindings],
      'output_dir': self._folder / name,
    }

  def figures(self, name: str | None) -> Any:
    """Runs what is left of an experiment; returns what its rules read.

    Raises:
      cell_runs.CellError: a run failed.
    """
    if name is None:
      return None
    if name == TOKEN_TRANSITION:
      found = token_transition.measure_all()
      results.write_json(self._folder / f'{name}.json', found)
      return found
    if name == PRUNING:
      self.figures(PRUNED)
      return [
        pruning.best_points(
          pruning.search_seed(self._folder / PRUNED, seed, _BATCHES, _BATCHES)
        )
        for seed in range(self._args.seeds)
      ]
    return compare.compare(
      seeds=self._args.seeds, jobs=self._args.jobs, **self._of(name)
    )


def main(argv: Sequence[str]) -> None:
  """Runs `python -m selective_t5x.studies.reproduction`."""
  args, bindings = command.parse(NAME, __doc__, argv, _add_flags)
  started = time.monotonic()
  claims = _claims(args.fast, args.claims)
  study = Study(claims, args, bindings)
  if args.dry_run:
    for name, runs in study.runs.items():
      print(f'{name}: {compare.describe(runs, args.jobs)}\n')
    return
  folder = pathlib.Path(args.output_dir)
  results.write_run_record(folder, run_mode='study', seed=None)
  name = 'fast' if args.fast else 'study'
  verdicts: dict[str, Verdict] = {}
  failures = []
  for experiment in dict.fromkeys(c.experiment for c in claims.values()):
    try:
      figures = study.figures(experiment)
    except cell_runs.CellError as error:
      failures.append(f'{experiment}: {error}')
      print(f'error: {failures[-1]}')
      continue
    for claim in (n for n, c in claims.items() if c.experiment == experiment):
      verdicts[claim] = verdict = claims[claim].rule.judge(figures)
      print(f'{claim}: {verdict.verdict}; {verdict.text}', flush=True)
    verdicts = {n: verdicts[n] for n in claims if n in verdicts}  # In order.
    results.write_json(
      folder / f'{name}.json',
      {
        'command': compare.command_line(),
        'seeds': args.seeds,
        'minutes': (time.monotonic() - started) / 60,
        'claims': summary(verdicts),
      },
    )
    (folder / f'{name}.md').write_text(as_markdown(claims, verdicts), 'utf-8')
  if args.keep:
    keep(folder, pathlib.Path(args.keep))
  if failures:
    raise cell_runs.CellError('; '.join(failures))
  minutes = (time.monotonic() - started) / 60
  print(f'{folder / name}.md is a table of this. Took {minutes:.1f} minutes.')
  print(json.dumps(summary(verdicts)))


def summary(verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
  """Returns {claim: {'verdict': ..., its numbers}}."""
  return {
    name: {'verdict': verdict.verdict, **verdict.numbers}
    for name, verdict in verdicts.items()
  }


def as_markdown(
  claims: Mapping[str, Claim], verdicts: Mapping[str, Verdict]
) -> str:
  """Returns a table of claims, a row each."""
  lines = [
    '| claim | what is said | source | experiment | here | verdict '
    "| at the paper's scale |",
    '| --- | --- | --- | --- | --- | --- | --- |',
  ]
  for name, claim in claims.items():
    verdict = verdicts.get(name)
    row = (
      f'`{name}`',
      claim.says,
      claim.source,
      claim.experiment or '',
      verdict.text if verdict else '',
      f'**{verdict.verdict}**' if verdict else 'not run',
      claim.paper_scale,
    )
    lines.append(f'| {" | ".join(row)} |')
  return '\n'.join(lines) + '\n'


def keep(folder: pathlib.Path, to: pathlib.Path) -> None:
  """Copies the small files of a study: figures and tables, no checkpoints.

  Commands lose the path of the Python that ran them.
  """
  for pattern in _KEPT:
    for path in folder.rglob(pattern):
      inside = path.relative_to(folder)
      if any(part.startswith('checkpoint_') for part in inside.parts):
        continue
      copy = to / inside
      copy.parent.mkdir(parents=True, exist_ok=True)
      if path.suffix == '.json':
        text = path.read_text(encoding='utf-8')
        text = re.sub(
          r'"command": "\S*/python[\d.]*', '"command": "python', text
        )
        copy.write_text(text, encoding='utf-8')
      else:
        shutil.copyfile(path, copy)


def _add_flags(made: argparse.ArgumentParser) -> None:
  made.add_argument(
    '--fast',
    action='store_true',
    help='a part of the claims; language models of 250 steps',
  )
  made.add_argument('--claims', metavar='NAME,NAME', help='these claims alone')
  made.add_argument(
    '--keep',
    metavar='DIR',
    help='at the end, copy all small files there: no checkpoints, no logs',
  )


def _claims(fast: bool, names: str | None) -> dict[str, Claim]:
  """Returns the claims to decide, their experiments those of the mode.

  Raises:
    UserError: there is no such claim.
  """
  known = {
    name: dataclasses.replace(claim, experiment=claim.fast) if fast else claim
    for name, claim in CLAIMS.items()
    if claim.fast or not fast
  }
  if names is None:
    return known
  for name in names.split(','):
    if name not in known:
      raise UserError(f'--claims: no claim {name!r}{did_you_mean(name, known)}')
  return {name: known[name] for name in names.split(',')}


if __name__ == '__main__':
  compare.run_command(main)
