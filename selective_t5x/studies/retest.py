r"""Computes the statistics of kept comparisons again from the seeds' values.

  python -m selective_t5x.studies.retest docs/studies

An earlier version may have kept other intervals, p-values and claims. This
replaces them in every comparison.json below the folder, and its table.txt. The
values of the seeds, costs and commands stay.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from selective_t5x.cli import exits
from selective_t5x.comparisons import claims, equal_cost
from selective_t5x.errors import UserError
from selective_t5x.report import statistics, tables
from selective_t5x.report.statistics import spread
from selective_t5x.runs.files import read_json, write_json

_COMPARISON = 'comparison.json'
# Costs that earlier versions did not keep.
_UNKNOWN = ('flops_per_step', 'step_bytes')
_UNKNOWN_OF_SEEDS = ('tokens_per_second', 'peak_rss_bytes')


def retested(comparison: dict[str, Any]) -> dict[str, Any]:
  """Returns the figures of a comparison with the statistics of this version.

  Args:
    comparison: see `figures.compare_cells`; an earlier version may have made
      it. Its seeds were fixed or added by its own 'stopping'.
  """
  first = comparison['variants'][0]
  references = comparison.get('references') or dict.fromkeys(
    comparison['variants'], first
  )
  stopping = claims.Stopping.of(comparison)
  loss = comparison['loss']
  results = [
    {**r, 'metrics': _spreads(r, comparison['results'], references)}
    for r in comparison['results']
  ]
  for metric in results[0]['metrics']:
    statistics.correct(
      [r['metrics'][metric].get('difference', {}) for r in results]
    )
  counts = {r['variant']: len(r['metrics'][loss]['values']) for r in results}
  costs = [_filled(cost) for cost in comparison['costs']]
  parameters = equal_cost.equal_parameters(costs, references)
  return {
    **comparison,
    'references': references,
    'seeds_of': counts,
    'stopping': comparison.get('stopping'),
    'results': results,
    'claims': claims.lines(results, references, loss, stopping),
    'caveats': [
      *claims.caveats(counts, stopping),
      # What was said of seeds and tests is replaced.
      *(
        line
        for line in comparison['caveats']
        if 'seeds: mean' not in line and 'Seeds were added' not in line
      ),
    ],
    'equal_time': _equal_time(comparison.get('equal_time'), references),
    'equal_parameters': parameters,
    'costs': costs,
  }


def retest(folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes the statistics of all comparisons below a folder again.

  Returns:
    the files whose content changed.

  Raises:
    UserError: there is no comparison below it.
  """
  paths = sorted(folder.rglob(_COMPARISON))
  if not paths:
    raise UserError(f'{folder}: no {_COMPARISON} below it')
  changed = []
  for path in paths:
    before = read_json(path)
    figures = retested(before)
    text = tables.as_text(figures)
    table = path.with_name('table.txt')
    if figures != before or table.read_text('utf-8') != text:
      write_json(path, figures)
      table.write_text(text, encoding='utf-8')
      changed.append(path)
  return changed


def _spreads(result, results, references) -> dict[str, Any]:
  """Returns the spreads of a result's metrics, with differences."""
  reference = references[result['variant']]
  values = {name: s['values'] for name, s in result['metrics'].items()}
  if reference == result['variant']:
    return {name: spread(of) for name, of in values.items()}
  (base,) = (
    r['metrics']
    for r in results
    if (r['task'], r['variant']) == (result['task'], reference)
  )
  return {
    name: spread(of, base[name]['values'][: len(of)])
    for name, of in values.items()
  }


def _equal_time(view, references) -> dict[str, Any] | None:
  """Returns the view at equal time with new spreads."""
  if view is None:
    return None
  as_results = [{**r, 'metrics': {'loss': r['loss']}} for r in view['results']]
  results = [
    {**r, 'loss': _spreads(wrapped, as_results, references)['loss']}
    for r, wrapped in zip(view['results'], as_results, strict=True)
  ]
  statistics.correct([r['loss'].get('difference', {}) for r in results])
  return {**view, 'results': results}


def _filled(cost: dict[str, Any]) -> dict[str, Any]:
  """Returns a variant's costs, with those that were not kept as unknown."""
  seeds = len(cost['train_seconds']['values'])
  return {
    **dict.fromkeys(_UNKNOWN),
    **{name: spread([None] * seeds) for name in _UNKNOWN_OF_SEEDS},
    **cost,
  }


def main(argv: Sequence[str]) -> None:
  """Runs the command."""
  if len(argv) != 1:
    raise UserError('expected the folder of kept figures')
  for path in retest(pathlib.Path(argv[0])):
    print(f'{path}: changed')


if __name__ == '__main__':
  exits.run_main(main)
