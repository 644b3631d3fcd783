"""Shows the loss against the size of pruned caches as plot, table and HTML."""

import pathlib
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from selective_t5x.errors import UserError
from selective_t5x.report import page, plots, tables
from selective_t5x.runs.files import read_json

# The file that selective_t5x.pruning.frontier writes into its folder.
FILE = 'frontier.json'


def read(folder: str) -> list[dict[str, Any]]:
  """Returns the curves of a frontier's folder.

  Raises:
    UserError: the folder has none.
  """
  file = pathlib.Path(folder) / FILE
  if not file.exists():
    raise UserError(
      f'{folder}: no {FILE}; expected a folder that '
      'selective_t5x.pruning.frontier has written'
    )
  frontier = read_json(file)
  return [*frontier['curves'], *frontier['searched']]


def figure(curves: Sequence[dict[str, Any]]):
  """Returns the plot of curves, see `budgets.frontier`."""
  return plots.memory_curves(
    [
      plots.Curve(
        f'{curve["model"]}, {curve["policy"]}',
        [point['memory_factor'] for point in curve['points']],
        [point['loss'] for point in curve['points']],
      )
      for curve in curves
    ]
  )


def table(curves: Sequence[dict[str, Any]]) -> tables.Table:
  """Returns the losses of curves, one row per point."""
  return tables.Table(
    title='loss (nats/token) with pruned caches',
    header=('model', 'policy', 'times fewer keys', 'loss', 'budgets'),
    rows=tuple(
      (
        curve['model'],
        curve['policy'],
        f'{point["memory_factor"]:.1f}',
        f'{point["loss"]:.4f}',
        _budgets(point['budgets']),
      )
      for curve in curves
      for point in curve['points']
    ),
  )


def _budgets(budgets) -> str:
  """Returns the budgets as text; one number if they are equal."""
  return ' '.join(map(str, budgets if len(set(budgets)) > 1 else budgets[:1]))


def section(curves: Sequence[dict[str, Any]]) -> Markup:
  """Returns the part of a page, as HTML."""
  return page.render(
    'memory.html',
    figure=plots.svg(figure(curves), 'memory'),
    points=table(curves),
  )
