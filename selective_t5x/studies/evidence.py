"""Verdicts on claims, corrected for the number of claims of a study.

A rule turns figures into two p-values: of the evidence for its claim and of the
evidence against it. Either is the least alpha at which the intervals of
confidence 1 - alpha decide so, and a false decision needs an interval that
misses the truth. So a claim's own chance of a false verdict is alpha, and
Holm's correction over all tested claims of the study bounds by 5 % the chance
that any verdict of the study is false.

Rules of counts (a task is solved in every seed) have no p-values; they are not
corrected and have no error rate.
"""

import bisect
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from selective_t5x.report import statistics
from selective_t5x.report.statistics import SIGNIFICANT

REPRODUCED = 'reproduced'
NOT_REPRODUCED = 'not reproduced'
UNDECIDED = 'undecided'
OUT_OF_REACH = 'out of reach here'

# Larger numbers of seeds are not looked for.
MOST_SEEDS = 200


@dataclasses.dataclass(frozen=True)
class Evidence:
  """The p-values of a claim.

  Attributes:
    supports: the least alpha at which the rule says REPRODUCED.
    refutes: the least alpha at which it says NOT_REPRODUCED.
    more: returns the evidence that n seeds would give if the differences keep
      their mean and their spread; None if nothing can be said.
  """

  supports: float
  refutes: float
  more: Callable[[int], 'Evidence'] | None = None

  @property
  def p_value(self) -> float:
    """The least alpha at which the rule decides."""
    return min(self.supports, self.refutes)

  def verdict(self, alpha: float) -> str:
    """Returns what the rule says at intervals of confidence 1 - alpha."""
    if self.supports <= alpha:
      return REPRODUCED
    return NOT_REPRODUCED if self.refutes <= alpha else UNDECIDED

  def seeds_needed(self, alpha: float) -> int | None:
    """Returns the number of seeds that would decide, see `more`; or None."""
    if self.more is None:
      return None
    numbers = range(statistics.SEEDS_FOR_A_TEST, MOST_SEEDS + 1)
    place = bisect.bisect_left(
      numbers, True, key=lambda n: self.more(n).p_value <= alpha
    )
    return numbers[place] if place < len(numbers) else None


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The verdict of a rule on a claim.

  Attributes:
    verdict: one of the four words above.
    text: the deciding figure, for a table.
    numbers: the deciding figure and others, for JSON.
    evidence: the p-values; None for a rule of counts.
  """

  verdict: str
  text: str
  numbers: Mapping[str, Any]
  evidence: Evidence | None = None


def of_evidence(
  text: str, numbers: Mapping[str, Any], evidence: Evidence
) -> Verdict:
  """Returns the verdict of one claim alone, before `corrected`."""
  p_values = {
    'p_supports': evidence.supports,
    'p_refutes': evidence.refutes,
  }
  return Verdict(
    evidence.verdict(SIGNIFICANT), text, {**numbers, **p_values}, evidence
  )


def corrected(
  verdicts: Mapping[str, Verdict], family: int
) -> dict[str, Verdict]:
  """Returns the verdicts of a study: each at its level of Holm's procedure.

  Args:
    verdicts: {claim: verdict of its rule}.
    family: the number of tested claims of the study, also of those that have no
      figures yet.

  Returns:
    the verdicts. Their numbers have p_corrected and, if undecided, seeds_needed
    (see `Evidence.more`; None: more than MOST_SEEDS, or unknown).
  """
  tested = {n: v for n, v in verdicts.items() if v.evidence}
  p_values = [v.evidence.p_value for v in tested.values()]
  corrected_p = statistics.holm(p_values, family)
  out = dict(verdicts)
  for (name, verdict), p_value in zip(tested.items(), corrected_p, strict=True):
    out[name] = _corrected(verdict, p_value)
  # The next claim that Holm would reject is tested at this level.
  decided = sum(p_value <= SIGNIFICANT for p_value in corrected_p)
  level = SIGNIFICANT / max(1, family - decided)
  for name, verdict in out.items():
    if name in tested and verdict.verdict == UNDECIDED:
      seeds = verdict.numbers.get('seeds_needed')
      if verdict.evidence.more:  # A verdict that was read again has none.
        seeds = verdict.evidence.seeds_needed(level)
      numbers = {**verdict.numbers, 'seeds_needed': seeds}
      out[name] = dataclasses.replace(verdict, numbers=numbers)
  return out


def in_words(verdict: Verdict) -> str:
  """Returns the figure of a verdict with its corrected p-value."""
  p_value = verdict.numbers.get('p_corrected')
  if p_value is None:
    return verdict.text
  text = f'{verdict.text}; corrected p = {p_value:.2g}'
  if verdict.verdict != UNDECIDED:
    return text
  seeds = verdict.numbers['seeds_needed']
  return f'{text}, about ' + (
    f'{seeds} seeds would decide'
    if seeds
    else f'more than {MOST_SEEDS} seeds would decide'
  )


def read(verdict: str, text: str, numbers: Mapping[str, Any]) -> Verdict:
  """Returns a verdict from the JSON of a study."""
  names = ('p_supports', 'p_refutes')
  evidence = None
  if all(name in numbers for name in names):
    evidence = Evidence(*(numbers[name] for name in names))
  return Verdict(verdict, text, numbers, evidence)


def _corrected(verdict: Verdict, p_corrected: float) -> Verdict:
  """Returns a verdict at a corrected p-value of its evidence."""
  evidence = verdict.evidence
  word = UNDECIDED
  if p_corrected <= SIGNIFICANT:
    # Holm rejects at a level of at least the p-value itself.
    word = evidence.verdict(evidence.p_value)
  numbers = {**verdict.numbers, 'p_corrected': p_corrected}
  return dataclasses.replace(verdict, verdict=word, numbers=numbers)


def stretched(difference: Mapping[str, Any], number: int) -> dict[str, Any]:
  """Returns n differences of the same mean and the same standard deviation.

  Args:
    difference: paired differences, see `statistics.spread`.
    number: n, 2 or more.

  Returns:
    what `statistics.p_below` reads.
  """
  values = np.array(difference['values'], np.float64)
  # Alternating, so that each look on the way has nearly this mean.
  signs = np.resize([1.0, -1.0], number)
  signs -= signs.mean()
  scale = values.std(ddof=1) / signs.std(ddof=1)
  values = values.mean() + scale * signs
  return {
    'values': values.tolist(),
    'mean': float(values.mean()),
    'min': float(values.min()),
    'max': float(values.max()),
    'rounding': difference.get('rounding', 0.0),
  }
