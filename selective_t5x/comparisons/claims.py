"""What the differences of losses in a comparison show, with its error rate.

With a fixed number of seeds a difference is lower or higher if the t-test says
so. A comparison that adds seeds until it is decided (`Stopping`) uses the
confidence sequence of `report.sequences`, and "the same within the margin" is a
verdict too. In both cases the p-values are corrected for the number of
differences by Holm's method: the chance that any claim of the comparison is
false is at most 5 %.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from selective_t5x.errors import UserError
from selective_t5x.report import sequences, statistics
from selective_t5x.report.statistics import SEEDS_FOR_A_TEST, SIGNIFICANT

OPEN = 'open'
# Nats per token: 1 % of perplexity.
MARGIN = 0.01
MAX_SEEDS = 20


@dataclasses.dataclass(frozen=True)
class Stopping:
  """The declared rule that ends the adding of seeds.

  Seeds are added, paired, to every variant whose difference to its reference is
  not decided yet.

  Attributes:
    margin: losses that differ by less are the same, in nats per token.
    max_seeds: a variant gets no more seeds than this.
  """

  margin: float = MARGIN
  max_seeds: int = MAX_SEEDS

  def __post_init__(self):
    if not self.margin > 0:
      raise UserError(f'--margin={self.margin}: expected more than 0')
    if self.max_seeds < SEEDS_FOR_A_TEST:
      raise UserError(
        f'--max_seeds={self.max_seeds}: expected {SEEDS_FOR_A_TEST} or more, '
        'for no test has fewer'
      )

  @classmethod
  def of(cls, figures: Mapping[str, Any]) -> 'Stopping | None':
    """Returns the rule of a comparison's figures; None: a fixed number."""
    rule = figures.get('stopping')
    return rule and cls(rule['margin'], rule['max_seeds'])


def lines(
  results: Sequence[dict[str, Any]],
  references: Mapping[str, str],
  loss: str,
  stopping: Stopping | None = None,
) -> list[str]:
  """Returns a line for each difference of losses: the most that it shows.

  Args:
    results: the entries of `figures.compare_cells`. The p-values of their
      differences are corrected, see `statistics.correct`.
    references: {variant: its reference, or itself}.
    loss: the metric of the losses.
    stopping: the rule that ended the comparison; None: a fixed number of seeds.
  """
  entries = _compared(results, references)
  if stopping is None:
    return [_fixed(e, references[e['variant']], loss) for e in entries]
  decided = decisions(results, references, loss, stopping)
  return [
    _sequential(
      entry,
      references[entry['variant']],
      loss,
      stopping,
      *decision,
      len(entries),
    )
    for entry, decision in zip(entries, decided.values(), strict=True)
  ]


def caveats(counts: Mapping[str, int], stopping: Stopping | None) -> list[str]:
  """Returns what readers must know of the seeds and of the tests.

  Args:
    counts: {variant: number of seeds}.
    stopping: the rule by which seeds were added; None: their number was fixed.
  """
  least, most = min(counts.values()), max(counts.values())
  if most == 1:
    return ['One seed: no claim about significance.']
  number = str(most) if least == most else f'{least} to {most}'
  if most < SEEDS_FOR_A_TEST:
    return [f'{number} seeds: mean [lowest, highest]; too few for a test.']
  text = [
    f'{number} seeds: mean [lowest, highest]; differences are paired by seed. '
    'p in a table is that of a two-sided paired t-test, corrected for all '
    'differences of its column (Holm).'
  ]
  if stopping:
    text.append(
      'Seeds were added until each difference of losses was decided, at most '
      f'{stopping.max_seeds}: the claims rest on a confidence sequence, which '
      'holds at every look, and p in the tables does not count. Losses are the '
      f'same if they differ by less than {stopping.margin:g}.'
    )
  return text


def decisions(
  results: Sequence[dict[str, Any]],
  references: Mapping[str, str],
  loss: str,
  stopping: Stopping,
) -> dict[tuple[str, str], tuple[str, float]]:
  """Returns {(task, variant): (outcome, corrected p-value)}.

  The outcome is 'lower', 'higher', 'the same' or OPEN.
  """
  entries = _compared(results, references)
  outcomes = []
  for entry in entries:
    difference = entry['metrics'][loss]['difference']

    def below(mean, difference=difference):
      return statistics.p_below(difference, mean, sequential=True)

    def above(mean, difference=difference):
      return statistics.p_above(difference, mean, sequential=True)

    # All three read one confidence sequence, so they need no correction.
    p_values = {
      'lower': below(0.0),
      'higher': above(0.0),
      'the same': max(below(stopping.margin), above(-stopping.margin)),
    }
    outcomes.append(min(p_values.items(), key=lambda item: item[1]))
  corrected = statistics.holm([p_value for _, p_value in outcomes])
  return {
    (entry['task'], entry['variant']): (
      outcome if p_value <= SIGNIFICANT else OPEN,
      p_value,
    )
    for entry, (outcome, _), p_value in zip(
      entries, outcomes, corrected, strict=True
    )
  }


def undecided(figures: Mapping[str, Any]) -> list[str]:
  """Returns the variants with an open difference in a comparison's figures."""
  stopping = Stopping.of(figures)
  decided = decisions(
    figures['results'], figures['references'], figures['loss'], stopping
  )
  return list(
    dict.fromkeys(
      variant for (_, variant), (how, _) in decided.items() if how == OPEN
    )
  )


def _compared(results, references) -> list[dict[str, Any]]:
  return [r for r in results if r['variant'] != references[r['variant']]]


def _fixed(entry, reference, loss) -> str:
  """Returns the claim of a t-test, or that there is none."""
  difference = entry['metrics'][loss]['difference']
  line = _untested(entry, reference, difference)
  if line:
    return line
  decimals = statistics.decimals(difference, 4)
  low, high = difference['t_interval']
  p_corrected, family = difference['p_corrected'], difference['p_family']
  figures = (
    f'95 % t interval {low:+.{decimals}f} to {high:+.{decimals}f}, '
    f'p = {difference["p_value"]:.2g}'
  )
  if family > 1:
    figures += f', corrected for {family} differences {p_corrected:.2g}'
  how = 'lower' if difference['mean'] < 0 else 'higher'
  outcome = how if p_corrected <= SIGNIFICANT else OPEN
  return _line(entry, reference, difference, outcome, decimals, figures)


def _sequential(
  entry, reference, loss, stopping, outcome, p_corrected, family
) -> str:
  """Returns the claim of the confidence sequence, or that there is none."""
  difference = entry['metrics'][loss]['difference']
  seeds = len(difference['values'])
  line = difference['mean'] is None and _untested(entry, reference, difference)
  if line:
    return line
  ends = sequences.interval(difference['values'])
  decimals = statistics.significant(
    ends[1] - ends[0] if ends else difference['mean'], 4
  )
  text = (
    f'95 % confidence sequence {ends[0]:+.{decimals}f} to '
    f'{ends[1]:+.{decimals}f}'
    if ends
    else 'no confidence sequence yet'
  )
  figures = f'{text} after {seeds} seeds, p = {p_corrected:.2g}'
  if family > 1:
    figures += f' corrected for {family} differences'
  if outcome == 'the same':
    return (
      f'{entry["task"]}: the losses of {entry["variant"]} and {reference} are '
      f'the same within {stopping.margin:g}; {figures}.'
    )
  line = _line(entry, reference, difference, outcome, decimals, figures)
  if outcome == OPEN and seeds >= stopping.max_seeds:
    line += f' {stopping.max_seeds} seeds are the most that were allowed.'
  return line


def _untested(entry, reference, difference) -> str | None:
  """Returns the line of a difference that no test can judge."""
  prefix = f'{entry["task"]}: '
  names = f'{entry["variant"]} and {reference}'
  if difference['mean'] is None:
    return f'{prefix}{names} cannot be compared: a loss is not finite.'
  if statistics.is_zero(difference):
    return (
      f'{prefix}the losses of {names} are equal within rounding in every seed.'
    )
  if difference['p_value'] is None:
    decimals = statistics.decimals(difference, 4)
    return (
      f'{prefix}the losses of {names} differ by '
      f'{difference["mean"]:+.{decimals}f} in every seed, the same within '
      'rounding, which no test can judge.'
    )
  return None


def _line(entry, reference, difference, outcome, decimals, figures) -> str:
  prefix = f'{entry["task"]}: '
  if outcome == OPEN:
    return (
      f'{prefix}it is not shown that the losses of {entry["variant"]} and '
      f'{reference} differ; {figures}.'
    )
  return (
    f'{prefix}the loss of {entry["variant"]} is {outcome} than that of '
    f'{reference} by {abs(difference["mean"]):.{decimals}f}; {figures}.'
  )
