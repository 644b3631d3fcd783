"""The verdicts of a study's folder, corrected together: JSON and a table."""

import argparse
import dataclasses
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from selective_t5x.cli import flags
from selective_t5x.comparisons import compare
from selective_t5x.errors import UserError, did_you_mean
from selective_t5x.runs.files import read_json, write_json
from selective_t5x.studies import evidence
from selective_t5x.studies.claims import CLAIMS, Claim
from selective_t5x.studies.evidence import Verdict


def of_mode(fast: bool) -> dict[str, Claim]:
  """Returns all claims of a mode, with their experiments in it."""
  if not fast:
    return CLAIMS
  return {
    name: dataclasses.replace(claim, experiment=claim.fast)
    for name, claim in CLAIMS.items()
    if claim.fast
  }


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
    self._stopping = compare.stopping_of(args)
    self._verdicts: dict[str, Verdict] = {}
    self._minutes = 0.0
    if not self._json.exists():
      return
    earlier = read_json(self._json)
    setting = self._setting()
    if {k: earlier.get(k, 'unknown') for k in setting} == setting:
      self._minutes = earlier['minutes']
      for name, figures in earlier['claims'].items():
        verdict = evidence.read(
          figures.pop('verdict'), figures.pop('text'), figures
        )
        # Those of an earlier version have no p-values: they are judged again.
        known = name in CLAIMS
        if known and CLAIMS[name].rule.tests == bool(verdict.evidence):
          self._verdicts[name] = verdict

  def _setting(self) -> dict[str, Any]:
    """Returns what verdicts that are corrected together have in common."""
    stopping = self._stopping and dataclasses.asdict(self._stopping)
    return {'seeds': self._args.seeds, 'stopping': stopping}

  @property
  def minutes(self) -> float:
    """The total time of this command and of earlier ones."""
    return self._minutes + (time.monotonic() - self._started) / 60

  def corrected(self, verdicts: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """Returns these verdicts and those of the record, corrected together."""
    return evidence.corrected({**self._verdicts, **verdicts}, tested())

  def write(
    self, claims: Mapping[str, Claim], verdicts: Mapping[str, Verdict]
  ) -> dict[str, Verdict]:
    """Adds verdicts and returns all of the record, corrected.

    The table has all `claims`, even those without figures.
    """
    self._verdicts = self.corrected(verdicts)
    known = of_mode(self._args.fast)
    decided = {n: self._verdicts[n] for n in known if n in self._verdicts}
    write_json(
      self._json,
      {
        'command': flags.command_line(),
        **self._setting(),
        'tested_claims': tested(),
        'minutes': self.minutes,
        'claims': {
          name: {'text': decided[name].text, **figures}
          for name, figures in summary(decided).items()
        },
      },
    )
    rows = {n: c for n, c in known.items() if n in claims or n in decided}
    self.table.write_text(as_markdown(rows, decided), 'utf-8')
    return self._verdicts


def tested() -> int:
  """Returns the number of claims whose verdicts have p-values.

  It is the same with --fast, whose claims are some of them.
  """
  return sum(claim.rule.tests for claim in CLAIMS.values())


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
      evidence.in_words(verdict) if verdict else '',
      f'**{verdict.verdict}**' if verdict else 'not run',
      claim.paper_scale,
    )
    lines.append(f'| {" | ".join(row)} |')
  return '\n'.join(lines) + '\n'
