"""Rules that decide from numbers alone whether a claim was reproduced.

Each rule can say reproduced, not reproduced or undecided. With fewer than three
seeds it always says undecided. `evidence.corrected` gives the verdicts of a
study of many claims.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from selective_t5x.comparisons.figures import Comparison
from selective_t5x.report.statistics import spread
from selective_t5x.studies import rules
from selective_t5x.studies.evidence import OUT_OF_REACH, Verdict, of_evidence

# A smaller difference of losses does not count: 1 % of perplexity.
NEGLIGIBLE = 0.01
# Small against the gain of selection: a tenth of the 0.44 nats per token of
# docs/studies/pruning.
SMALL = 0.04
# A memory factor that is larger by less is not larger; caches of the same
# budgets have the same factor but for rounding.
_NONE = 1e-9


@dataclasses.dataclass(frozen=True)
class Solves(rules.Rule):
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
  tests = False

  @property
  def variants(self):
    """All of them."""
    return (*self.solved_by, *self.not_solved_by)

  def judge(self, figures: Comparison, *, sequential: bool = False) -> Verdict:
    """Returns the verdict on a comparison."""
    del sequential
    spreads = {
      name: _metric(figures, self.task, name, 'accuracy')
      for name in self.variants
    }
    # A run with a loss that was not finite has not solved the task.
    solved = {
      name: [value is not None and value >= self.least for value in s['values']]
      for name, s in spreads.items()
    }
    verdict = rules.counted(
      min(map(len, solved.values())),
      yes=all(all(solved[name]) for name in self.solved_by)
      and not any(any(solved[name]) for name in self.not_solved_by),
      no=not all(any(solved[name]) for name in self.solved_by)
      or any(all(solved[name]) for name in self.not_solved_by),
    )
    return Verdict(
      verdict,
      'accuracy '
      + ', '.join(f'{n} {rules.range_text(s)}' for n, s in spreads.items()),
      {f'{name}_accuracy': s['values'] for name, s in spreads.items()},
    )


@dataclasses.dataclass(frozen=True)
class LossDifference(rules.Rule):
  """Decides by an interval of the paired difference of two losses.

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
  def decide(
    self, below: Callable[[float], float], above: Callable[[float], float]
  ) -> tuple[float, float]:
    """Returns the p-values of the claim and of its opposite.

    Args:
      below: returns the least alpha whose interval lies below a mean.
      above: the same above it.
    """

  def judge(self, figures: Comparison, *, sequential: bool = False) -> Verdict:
    """Returns the verdict on a comparison."""
    losses = {
      name: _metric(figures, self.task, name, figures['loss'])
      for name in self.variants
    }
    # Seeds are 0, 1, ...; one of the two may have more of them.
    pairs = [losses[self.variant]['values'], losses[self.than]['values']]
    seeds = min(map(len, pairs))
    difference = spread(pairs[0][:seeds], reference=pairs[1][:seeds])[
      'difference'
    ]
    return of_evidence(
      f'loss {self.variant} - {self.than}: '
      + rules.interval_text(difference, sequential=sequential),
      {
        **{f'{name}_loss': loss['mean'] for name, loss in losses.items()},
        'seeds': seeds,
        'difference': difference['mean'],
        **rules.interval_of(difference, sequential),
      },
      rules.evidence_of(difference, self.decide, sequential),
    )


@dataclasses.dataclass(frozen=True)
class Lower(LossDifference):
  """The loss is lower: the whole interval is below the margin.

  An interval without any gain above NEGLIGIBLE refutes. With the margin
  NEGLIGIBLE, the loss only has to be no worse.
  """

  margin: float = 0.0

  def decide(self, below, above) -> tuple[float, float]:
    """See `LossDifference`."""
    return below(self.margin), above(self.margin - NEGLIGIBLE)


@dataclasses.dataclass(frozen=True)
class Same(LossDifference):
  """The losses are the same: the whole interval is within ±margin.

  An interval outside of ±margin refutes.
  """

  margin: float = SMALL

  def decide(self, below, above) -> tuple[float, float]:
    """See `LossDifference`."""
    within = max(below(self.margin), above(-self.margin))
    return within, min(above(self.margin), below(-self.margin))


@dataclasses.dataclass(frozen=True)
class MemoryFactor(rules.Rule):
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
  tests = False

  def judge(
    self, figures: Sequence[Mapping[str, Any]], *, sequential: bool = False
  ) -> Verdict:
    """Returns the verdict on one `pruning.best_points` a seed."""
    del sequential
    factors = spread(_factors(figures, self.kind, self.name))
    verdict = rules.counted(
      len(figures),
      yes=factors['min'] >= self.least,
      no=factors['max'] < self.least,
    )
    return Verdict(
      verdict,
      f'{self.name}: {rules.range_text(factors, ".1f")} times fewer keys',
      {f'{self.name}_memory_factor': factors['values']},
    )


@dataclasses.dataclass(frozen=True)
class Smaller(rules.Rule):
  """A pruned cache is smaller than those of others, by paired intervals.

  Intervals against all others above zero show it. An interval against one of
  them below zero refutes it; the p-values of this are corrected for the number
  of others.

  Attributes:
    kind: the loss to reach, a key of `pruning.best_points`.
    name: the model and its policy.
    than: the other models and policies.
  """

  kind: str
  name: str
  than: tuple[str, ...]

  def judge(
    self, figures: Sequence[Mapping[str, Any]], *, sequential: bool = False
  ) -> Verdict:
    """Returns the verdict on one `pruning.best_points` a seed."""
    factors = _factors(figures, self.kind, self.name)
    others = {name: _factors(figures, self.kind, name) for name in self.than}
    differences = {
      name: spread(factors, reference=values)['difference']
      for name, values in others.items()
    }
    return of_evidence(
      f'times fewer keys, {self.name} - '
      + ', '.join(
        f'{name}: {rules.interval_text(d, 1, sequential=sequential)}'
        for name, d in differences.items()
      ),
      {
        'seeds': len(factors),
        **{
          f'{name}_memory_factor': values
          for name, values in {self.name: factors, **others}.items()
        },
      },
      rules.evidence_of_all(
        differences.values(),
        lambda below, above: (above(0), below(_NONE)),
        sequential,
      ),
    )


@dataclasses.dataclass(frozen=True)
class LowerWithTemperatures(rules.Rule):
  """A measure of SSA's token transitions is lower at every head size.

  A higher one at any head size refutes; the p-values of this are corrected for
  the number of sizes.

  Attributes:
    measure: one of `token_transition.MEASURES`.
  """

  measure: str

  def judge(
    self, figures: Mapping[str, Any], *, sequential: bool = False
  ) -> Verdict:
    """Returns the verdict on the figures of `token_transition.measure_all`."""
    del sequential  # The number of seeds is fixed.
    differences = {
      name: self._difference(measures)
      for name, measures in figures.items()
      if name.startswith('size_')
    }
    return of_evidence(
      f'{self.measure} SSA - plain, head of '
      + ', '.join(
        f'{name.replace("_", " ")}: {rules.interval_text(d)}'
        for name, d in differences.items()
      ),
      {
        'seeds': figures['seeds'],
        **{
          f'{name}_{label}': d[key]
          for name, d in differences.items()
          for label, key in (('difference', 'mean'), ('interval', 't_interval'))
        },
      },
      rules.evidence_of_all(
        differences.values(), lambda below, above: (below(0), above(0)), False
      ),
    )

  def _difference(self, measures: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `spread` of paired differences."""
    return spread(
      measures['per_seed']['ssa'][self.measure],
      reference=measures['per_seed']['plain'][self.measure],
    )['difference']


@dataclasses.dataclass(frozen=True)
class OutOfReach(rules.Rule):
  """Marks a claim that two cores cannot decide; it reads no figures.

  Attributes:
    why: the reason in a few words.
  """

  why: str
  tests = False

  def judge(self, figures: None, *, sequential: bool = False) -> Verdict:
    """Returns the verdict."""
    del figures, sequential
    return Verdict(OUT_OF_REACH, self.why, {})


def _metric(figures: Comparison, task: str, variant: str, metric: str):
  """Returns the spread of a metric of the last evaluation."""
  metrics = [
    result['metrics'][metric]
    for result in figures['results']
    if (result['task'], result['variant']) == (task, variant)
  ]
  return metrics[0]


def _factors(figures, kind: str, name: str) -> list[float]:
  points = [seed_points[kind][name] for seed_points in figures]
  return [point['memory_factor'] if point else 0.0 for point in points]
