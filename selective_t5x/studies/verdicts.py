"""Rules that decide from numbers alone whether a claim was reproduced.

Each rule can say reproduced, not reproduced or undecided. With fewer than three
seeds it always says undecided.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from selective_t5x.comparisons.figures import Comparison
from selective_t5x.report.statistics import (
  SEEDS_FOR_A_TEST,
  all_equal,
  decimals,
  is_zero,
  rounding,
  spread,
)

REPRODUCED = 'reproduced'
NOT_REPRODUCED = 'not reproduced'
UNDECIDED = 'undecided'
OUT_OF_REACH = 'out of reach here'

# A smaller difference of losses does not count: 1 % of perplexity.
NEGLIGIBLE = 0.01
# Small against the gain of selection: a tenth of the 0.44 nats per token of
# docs/studies/pruning.
SMALL = 0.04


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The verdict of a rule on a claim.

  Attributes:
    verdict: one of the four words above.
    text: the deciding figure, for a table.
    numbers: the deciding figure and others, for JSON.
  """

  verdict: str
  text: str
  numbers: Mapping[str, Any]


class Rule(abc.ABC):
  """A rule that decides a claim."""

  variants: Sequence[str] = ()  # The variants of a comparison that it reads.

  @abc.abstractmethod
  def judge(self, figures: Any) -> Verdict:
    """Returns the verdict on the figures of the claim's experiment."""


@dataclasses.dataclass(frozen=True)
class Solves(Rule):
  """Some variants solve a task, and others do not, in every seed.

  Attributes:
    task: the evaluated task.
    solved_by: variants that should solve it. One that never does refutes.
    not_solved_by: variants that should not. One that always does refutes.
    least: the lowest accuracy (0 to 1) that solves the task.
  """

  task: str
  solved_by: tuple[str, ...]
  not_solved_by: tuple[str, ...] = ()
  least: float = 0.99

  @property
  def variants(self):
    """All of them."""
    return (*self.solved_by, *self.not_solved_by)

  def judge(self, figures: Comparison) -> Verdict:
    """Returns the verdict on a comparison."""
    spreads = {
      name: _metric(figures, self.task, name, 'accuracy')
      for name in self.variants
    }
    # A run with a loss that was not finite has not solved the task.
    solved = {
      name: [value is not None and value >= self.least for value in s['values']]
      for name, s in spreads.items()
    }
    verdict = _verdict(
      len(figures['seeds']),
      yes=all(all(solved[name]) for name in self.solved_by)
      and not any(any(solved[name]) for name in self.not_solved_by),
      no=not all(any(solved[name]) for name in self.solved_by)
      or any(all(solved[name]) for name in self.not_solved_by),
    )
    return Verdict(
      verdict,
      'accuracy ' + ', '.join(f'{n} {_range(s)}' for n, s in spreads.items()),
      {f'{name}_accuracy': s['values'] for name, s in spreads.items()},
    )


@dataclasses.dataclass(frozen=True)
class LossDifference(Rule):
  """Decides by the paired 95 % t interval of a difference of two losses.

  Attributes:
    task: the evaluated task.
    variant: the variant whose loss comes first.
    than: the variant whose loss is subtracted.
    margin: nats per token.
  """

  task: str
  variant: str
  than: str
  margin: float

  @property
  def variants(self):
    """Both."""
    return (self.than, self.variant)

  @abc.abstractmethod
  def decide(self, low: float, high: float) -> tuple[bool, bool]:
    """Returns (whether an interval shows the claim, whether it refutes it)."""

  def judge(self, figures: Comparison) -> Verdict:
    """Returns the verdict on a comparison."""
    losses = {
      name: _metric(figures, self.task, name, figures['loss'])
      for name in self.variants
    }
    difference = spread(
      losses[self.variant]['values'], reference=losses[self.than]['values']
    )['difference']
    yes, no = self.decide(*_interval(difference))
    return Verdict(
      _verdict(len(figures['seeds']), yes=yes, no=no),
      f'loss {self.variant} - {self.than}: {_with_interval(difference)}',
      {
        **{f'{name}_loss': loss['mean'] for name, loss in losses.items()},
        'difference': difference['mean'],
        'interval': difference['t_interval'],
        'p_value': difference['p_value'],
      },
    )


@dataclasses.dataclass(frozen=True)
class Lower(LossDifference):
  """The loss is lower: the whole interval is below the margin.

  An interval without any gain above NEGLIGIBLE refutes. With the margin
  NEGLIGIBLE, the loss only has to be no worse.
  """

  margin: float = 0.0

  def decide(self, low: float, high: float) -> tuple[bool, bool]:
    """See `LossDifference`."""
    return high < self.margin, low > self.margin - NEGLIGIBLE


@dataclasses.dataclass(frozen=True)
class Same(LossDifference):
  """The losses are the same: the whole interval is within ±margin.

  An interval outside of ±margin refutes.
  """

  margin: float = SMALL

  def decide(self, low: float, high: float) -> tuple[bool, bool]:
    """See `LossDifference`."""
    within = -self.margin < low and high < self.margin
    return within, low > self.margin or high < -self.margin


@dataclasses.dataclass(frozen=True)
class MemoryFactor(Rule):
  """A pruned cache is this many times smaller in every seed.

  If it is in no seed, that refutes. A model that does not reach the loss even
  with its whole cache has the factor 0.

  Attributes:
    kind: the loss to reach, a key of `pruning.best_points`.
    name: the model and its policy.
    least: the smallest factor.
  """

  kind: str
  name: str
  least: float

  def judge(self, figures: Sequence[Mapping[str, Any]]) -> Verdict:
    """Returns the verdict on one `pruning.best_points` a seed."""
    factors = spread(_factors(figures, self.kind, self.name))
    verdict = _verdict(
      len(figures),
      yes=factors['min'] >= self.least,
      no=factors['max'] < self.least,
    )
    return Verdict(
      verdict,
      f'{self.name}: {_range(factors, ".1f")} times fewer keys',
      {f'{self.name}_memory_factor': factors['values']},
    )


@dataclasses.dataclass(frozen=True)
class Smaller(Rule):
  """A pruned cache is smaller than those of others, by paired 95 % intervals.

  An interval against one of them without values above zero refutes.

  Attributes:
    kind: the loss to reach, a key of `pruning.best_points`.
    name: the model and its policy.
    than: the other models and policies.
  """

  kind: str
  name: str
  than: tuple[str, ...]

  def judge(self, figures: Sequence[Mapping[str, Any]]) -> Verdict:
    """Returns the verdict on one `pruning.best_points` a seed."""
    factors = _factors(figures, self.kind, self.name)
    others = {name: _factors(figures, self.kind, name) for name in self.than}
    differences = {
      name: spread(factors, reference=values)['difference']
      for name, values in others.items()
    }
    intervals = [_interval(d) for d in differences.values()]
    verdict = _verdict(
      len(figures),
      yes=all(low > 0 for low, _ in intervals),
      no=any(high <= 0 for _, high in intervals),
    )
    return Verdict(
      verdict,
      f'times fewer keys, {self.name} - '
      + ', '.join(
        f'{name}: {_with_interval(d, 1)}' for name, d in differences.items()
      ),
      {
        f'{name}_memory_factor': values
        for name, values in {self.name: factors, **others}.items()
      },
    )


@dataclasses.dataclass(frozen=True)
class LowerWithTemperatures(Rule):
  """A measure of SSA's token transitions is lower at every head size, by 95 %.

  A higher one at any head size refutes.

  Attributes:
    measure: one of `token_transition.MEASURES`.
  """

  measure: str

  def judge(self, figures: Mapping[str, Any]) -> Verdict:
    """Returns the verdict on the figures of `token_transition.measure_all`."""
    differences = {
      name: self._difference(measures)
      for name, measures in figures.items()
      if name.startswith('size_')
    }
    intervals = [_interval(d) for d in differences.values()]
    verdict = _verdict(
      figures['seeds'],
      yes=all(high < 0 for _, high in intervals),
      no=any(low > 0 for low, _ in intervals),
    )
    return Verdict(
      verdict,
      f'{self.measure} SSA - plain, head of '
      + ', '.join(
        f'{name.replace("_", " ")}: {_with_interval(d)}'
        for name, d in differences.items()
      ),
      {
        f'{name}_{label}': d[key]
        for name, d in differences.items()
        for label, key in (('difference', 'mean'), ('interval', 't_interval'))
      },
    )

  def _difference(self, measures: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `spread` of the means, with the measured interval."""
    means = measures['ssa'][self.measure], measures['plain'][self.measure]
    return {
      **spread([means[0] - means[1]]),
      't_interval': measures.get('ssa - plain', {}).get(self.measure),
      'rounding': rounding(means),
    }


@dataclasses.dataclass(frozen=True)
class OutOfReach(Rule):
  """Marks a claim that two cores cannot decide; it reads no figures.

  Attributes:
    why: the reason in a few words.
  """

  why: str

  def judge(self, figures: None) -> Verdict:
    """Returns the verdict."""
    del figures
    return Verdict(OUT_OF_REACH, self.why, {})


def _verdict(seeds: int, *, yes: bool, no: bool) -> str:
  if seeds < SEEDS_FOR_A_TEST:
    return UNDECIDED
  if yes:
    return REPRODUCED
  return NOT_REPRODUCED if no else UNDECIDED


def _metric(figures: Comparison, task: str, variant: str, metric: str):
  """Returns the spread of a metric of the last evaluation."""
  metrics = [
    result['metrics'][metric]
    for result in figures['results']
    if (result['task'], result['variant']) == (task, variant)
  ]
  return metrics[0]


def _interval(difference: Mapping[str, Any]) -> tuple[float, float]:
  """Returns the ends of an interval; infinite if nothing is known.

  An interval that is zero within rounding becomes zero: its sign means nothing.
  """
  if difference['t_interval'] is not None:
    ends = tuple(difference['t_interval'])
  elif all_equal(difference):
    ends = difference['mean'], difference['mean']
  else:
    return float('-inf'), float('inf')
  small = all(abs(end) <= difference['rounding'] for end in ends)
  return (0.0, 0.0) if small else ends


def _factors(figures, kind: str, name: str) -> list[float]:
  points = [seed_points[kind][name] for seed_points in figures]
  return [point['memory_factor'] if point else 0.0 for point in points]


def _range(spread: Mapping[str, Any], form: str = '.3f') -> str:
  if spread['mean'] is None:
    return 'not finite'
  low, mean, high = (
    format(spread[key], form) for key in ('min', 'mean', 'max')
  )
  return f'{mean} ({low} to {high})'


def _with_interval(difference: Mapping[str, Any], least: int = 3) -> str:
  if difference['mean'] is None:
    return 'not finite'
  if len(difference['values']) > 1 and is_zero(difference):
    return 'equal within rounding in every seed'
  form = f'+.{decimals(difference, least)}f'
  text = format(difference['mean'], form)
  if difference['t_interval'] is None:
    return f'{text}, no interval'
  low, high = (format(end, form) for end in difference['t_interval'])
  return f'{text} ({low} to {high})'
