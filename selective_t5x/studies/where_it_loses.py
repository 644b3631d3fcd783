r"""Writes docs/where_it_loses.md: what did not help, from the kept figures.

  python -m selective_t5x.studies.where_it_loses docs/where_it_loses.md \
    docs/studies

Every number of the page is read from a file of kept figures; nothing is typed
by hand.
"""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from selective_t5x.cli import exits
from selective_t5x.errors import UserError
from selective_t5x.report import statistics, tables
from selective_t5x.report.statistics import spread
from selective_t5x.runs.files import read_json
from selective_t5x.studies import evidence, page, rules
from selective_t5x.studies.claims import CLAIMS
from selective_t5x.studies.evidence import NOT_REPRODUCED, UNDECIDED
from selective_t5x.studies.verdicts import Solves

_COMPARISON = 'comparison.json'
_INTRO = r"""# Where it loses

What was tried and did not help, from the same kept figures as the gains of
[reproduction.md](reproduction.md). Differences are paired by seed; intervals
are 95 % t intervals of one difference each, not corrected. This page is written
from docs/studies:

```
python -m selective_t5x.studies.where_it_loses \
  docs/where_it_loses.md docs/studies
```
"""
# {heading: (what the table shows, function of the studies' folder)}
_SECTIONS: dict[str, tuple[str, Any]] = {}


def _section(heading: str, text: str):
  def add(rows_of):
    _SECTIONS[heading] = (text, rows_of)
    return rows_of

  return add


def text(studies: pathlib.Path) -> str:
  """Returns the page.

  Args:
    studies: the folder of the kept figures, see `keep`.
  """
  parts = [_INTRO]
  for heading, (explanation, rows_of) in _SECTIONS.items():
    header, rows = rows_of(studies)
    table = tables.markdown(tables.Table('', header, tuple(rows)))
    parts.append(
      f'## {heading}\n\n{explanation}\n\n'
      + (table.partition('\n\n')[2] if rows else 'None is kept.\n')
    )
  return '\n'.join(parts)


@_section(
  'Claims that did not hold',
  'Verdicts of the evidence page, corrected for all of its claims.',
)
def _refuted(studies):
  return _claims(studies, NOT_REPRODUCED)


@_section(
  'Claims that nothing decides yet',
  'The kept seeds show neither the claim nor its opposite.',
)
def _open(studies):
  return _claims(studies, UNDECIDED)


def _claims(studies, word):
  claims, verdicts = page.decided(studies)
  rows = [
    (name, claims[name].statement, evidence.in_words(verdict))
    for name, verdict in verdicts.items()
    if verdict.verdict == word
  ]
  return ('claim', 'what is said', 'figure'), rows


@_section(
  'Variants that are not below plain attention',
  "Their held-out loss (nats a token) minus the baseline's; the interval "
  'does not lie below zero.',
)
def _no_gain(studies):
  rows = []
  for name, comparison in _comparisons(studies):
    for variant, difference in _differences(comparison, 'baseline'):
      ends = difference['t_interval']
      if ends is None or ends[1] >= 0:
        rows.append((name, variant, rules.interval_text(difference)))
  return ('figures', 'variant', 'loss - baseline'), rows


@_section(
  'Variants that are below selection',
  'Their held-out loss minus that of `selective`, where the whole interval '
  'lies below zero. Some have more parameters or take longer: the tables in '
  'docs/studies say so.',
)
def _better(studies):
  rows = []
  for name, comparison in _comparisons(studies):
    for variant, difference in _differences(comparison, 'selective'):
      ends = difference['t_interval']
      if ends is not None and ends[1] < 0:
        rows.append((name, variant, rules.interval_text(difference)))
  return ('figures', 'variant', 'loss - selective'), rows


@_section(
  'Tasks that a seed does not solve',
  'Accuracies below 0.99 of selective models.',
)
def _unsolved(studies):
  rows = []
  tasks = {
    claim.rule.task
    for claim in CLAIMS.values()
    if isinstance(claim.rule, Solves)
  }
  for name, comparison in _comparisons(studies):
    for result in comparison['results']:
      if result['task'] not in tasks:
        continue  # Nobody solves these.
      values = result['metrics']['accuracy']['values']
      low = [v for v in values if v is None or v < 0.99]
      if low and result['variant'].startswith('selective'):
        texts = ('not finite' if v is None else f'{v:.3f}' for v in low)
        rows.append(
          (
            name,
            result['task'],
            result['variant'],
            f'{len(low)} of {len(values)}',
            ', '.join(texts),
          )
        )
  return ('figures', 'task', 'variant', 'seeds', 'accuracy'), rows


@_section(
  'What selection costs',
  'A train step of `selective` over one of `baseline`: operations in matrix '
  'products and memory, as compiled. Nothing of it is gained back unless dead '
  'keys are dropped ([forgetting.md](forgetting.md)) or the cache is pruned.',
)
def _costs(studies):
  rows = []
  for name, comparison in _comparisons(studies):
    costs = {cost['variant']: cost for cost in comparison['costs']}
    if not {'baseline', 'selective'} <= costs.keys():
      continue
    ratios = [
      _ratio(costs['selective'][k], costs['baseline'][k])
      for k in ('flops_per_step', 'step_bytes')
    ]
    if any(ratios):
      rows.append((name, *(f'{r:.3f}' if r else 'n/a' for r in ratios)))
  return ('figures', 'operations', 'memory'), rows


@_section(
  'Budgets at which another policy prunes better',
  'On the same selective model (one seed): the lowest loss of any policy and '
  "the loss of selection's own, with one budget for all layers.",
)
def _policies(studies):
  rows = []
  for path in sorted(studies.rglob('frontier.json')):
    losses: dict[tuple[str, int], dict[str, float]] = {}
    for curve in read_json(path)['curves']:
      for point in curve['points']:
        if len(set(point['budgets'])) == 1:
          place = curve['model'], point['budgets'][0]
          losses.setdefault(place, {})[curve['policy']] = point['loss']
    for (model, budget), of_policies in losses.items():
      own = of_policies.get('selective')
      best = min(of_policies, key=of_policies.get)
      if own is not None and of_policies[best] < own:
        rows.append(
          (
            str(path.parent.relative_to(studies)),
            model,
            str(budget),
            f'{best}: {of_policies[best]:.4f}',
            f'{own:.4f}',
          )
        )
  return ('figures', 'model', 'keys a layer', 'lowest loss', 'its own'), rows


def _comparisons(studies) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (name, figures) of all kept comparisons."""
  for path in sorted(studies.rglob(_COMPARISON)):
    comparison = read_json(path)
    earlier = page.EARLIER.get(str(path.relative_to(studies)), {})
    for result in comparison['results']:
      if result['variant'] in earlier:
        result['variant'] += f', {earlier[result["variant"]]}'
    yield str(path.parent.relative_to(studies)), comparison


def _differences(comparison, than: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (variant, paired difference of losses to another variant)."""
  loss = comparison['loss']
  by_task: dict[str, dict[str, Any]] = {}
  for result in comparison['results']:
    values = result['metrics'][loss]['values']
    by_task.setdefault(result['task'], {})[result['variant']] = values
  for of_variants in by_task.values():
    if than not in of_variants:
      continue
    for variant, values in of_variants.items():
      if variant not in (than, 'baseline'):
        seeds = min(len(values), len(of_variants[than]))
        difference = spread(values[:seeds], of_variants[than][:seeds])[
          'difference'
        ]
        if seeds >= statistics.SEEDS_FOR_A_TEST:
          yield variant, difference


def _ratio(one: float | None, other: float | None) -> float | None:
  return one / other if one and other else None


def main(argv: Sequence[str]) -> None:
  """Runs the command."""
  if len(argv) != 2 or any(arg.startswith('-') for arg in argv):
    raise UserError('expected the page and the folder of the figures')
  studies = pathlib.Path(argv[1])
  if not studies.is_dir():
    raise UserError(f'{studies}: no such folder; expected kept figures')
  pathlib.Path(argv[0]).write_text(text(studies), encoding='utf-8')


if __name__ == '__main__':
  exits.run_main(main)
