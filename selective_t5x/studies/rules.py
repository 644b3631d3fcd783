"""What the rules of verdicts share: their interface, evidence and texts."""

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from selective_t5x.report import sequences
from selective_t5x.report.statistics import (
  SEEDS_FOR_A_TEST,
  decimals,
  is_zero,
  p_above,
  p_below,
  significant,
)
from selective_t5x.studies.evidence import (
  NOT_REPRODUCED,
  REPRODUCED,
  UNDECIDED,
  Evidence,
  Verdict,
  stretched,
)


class Rule(abc.ABC):
  """A rule that decides a claim."""

  variants: Sequence[str] = ()  # The variants of a comparison that it reads.
  tests: bool = True  # Whether its verdicts have p-values.

  @abc.abstractmethod
  def judge(self, figures: Any, *, sequential: bool = False) -> Verdict:
    """Returns the verdict on the figures of the claim's experiment.

    Args:
      figures: see the rule.
      sequential: whether seeds were added after looks: the intervals are those
        of `report.sequences`, not of the t-test.
    """


def counted(seeds: int, *, yes: bool, no: bool) -> str:
  """Returns the verdict of a rule of counts, UNDECIDED below three seeds."""
  if seeds < SEEDS_FOR_A_TEST:
    return UNDECIDED
  if yes:
    return REPRODUCED
  return NOT_REPRODUCED if no else UNDECIDED


# From the p-values of an interval below and above a mean to those of a claim
# and its opposite.
_Decide = Callable[
  [Callable[[float], float], Callable[[float], float]], tuple[float, float]
]


def evidence_of(
  difference: Mapping[str, Any], decide: _Decide, sequential: bool
) -> Evidence:
  """Returns the evidence of one paired difference."""

  def p_values(of, added=sequential):
    return decide(
      lambda mean: p_below(of, mean, sequential=added),
      lambda mean: p_above(of, mean, sequential=added),
    )

  values = difference['values']
  more = None
  if len(values) >= SEEDS_FOR_A_TEST and None not in values:

    def more(number):  # Seeds can only be added by --until_decided.
      return Evidence(*p_values(stretched(difference, number), True))

  return Evidence(*p_values(difference), more)


def evidence_of_all(
  differences: Iterable[Mapping[str, Any]], decide: _Decide, sequential: bool
) -> Evidence:
  """Returns the evidence that all hold, and that any does not."""
  each = [evidence_of(d, decide, sequential) for d in differences]

  def joined(of: Sequence[Evidence], more=None) -> Evidence:
    return Evidence(
      max(e.supports for e in of),
      min(1.0, len(of) * min(e.refutes for e in of)),
      more,
    )

  def more(number: int) -> Evidence:
    return joined([e.more(number) for e in each])

  return joined(each, more if all(e.more for e in each) else None)


def interval_of(
  difference: Mapping[str, Any], sequential: bool
) -> dict[str, Any]:
  """Returns the 95 % interval of one difference and its p-value, for JSON."""
  if sequential:
    ends = (
      sequences.interval(difference['values']) if _known(difference) else None
    )
    return {'confidence_sequence': ends and list(ends)}
  return {
    'interval': difference['t_interval'],
    'p_value': difference['p_value'],
  }


def _known(difference: Mapping[str, Any]) -> bool:
  return difference['mean'] is not None and not is_zero(difference)


def range_text(spread: Mapping[str, Any], form: str = '.3f') -> str:
  """Returns 'mean (lowest to highest)' of a `statistics.spread`."""
  if spread['mean'] is None:
    return 'not finite'
  low, mean, high = (
    format(spread[key], form) for key in ('min', 'mean', 'max')
  )
  return f'{mean} ({low} to {high})'


def interval_text(
  difference: Mapping[str, Any], least: int = 3, *, sequential: bool = False
) -> str:
  """Returns 'mean (low to high)', with the 95 % interval of one difference."""
  if difference['mean'] is None:
    return 'not finite'
  if len(difference['values']) > 1 and is_zero(difference):
    return 'equal within rounding in every seed'
  if sequential:
    ends = sequences.interval(difference['values'])
    width = ends[1] - ends[0] if ends else difference['mean']
    digits = significant(width, least)
  else:
    ends = difference['t_interval']
    digits = decimals(difference, least)
  form = f'+.{digits}f'
  text = format(difference['mean'], form)
  if ends is None:
    return f'{text}, no interval'
  low, high = (format(end, form) for end in ends)
  seeds = f'; {len(difference["values"])} seeds' if sequential else ''
  return f'{text} ({low} to {high}{seeds})'
