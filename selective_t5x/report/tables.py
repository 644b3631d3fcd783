"""A comparison's tables: as text for the terminal, as CSV for other tools."""

import csv
import dataclasses
import io
from typing import Any

from selective_t5x import results

_LABELS = {results.LOSS: 'loss (nats/token)', 'loss': 'loss'}


@dataclasses.dataclass(frozen=True)
class Table:
  """Text in rows: the first column names the row, the others are numbers."""

  title: str
  header: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]


def label(metric: str) -> str:
  """Returns a metric's name with its unit."""
  return _LABELS.get(metric, metric)


def tables(comparison: dict[str, Any]) -> list[Table]:
  """Returns a table for each evaluated task, and one of the costs.

  Args:
    comparison: see `comparison.compare_cells`.
  """
  metrics = (comparison['loss'], 'accuracy')
  references = comparison['references']
  by_task: dict[str, list] = {}
  for result in comparison['results']:
    by_task.setdefault(result['task'], []).append(result)
  found = [
    Table(
      title=f'{task}, step {entries[0]["step"]:,}',
      header=('variant', *map(label, metrics)),
      rows=(
        *(_row(e, metrics) for e in entries),
        *(
          _difference_row(e, metrics, references[e['variant']])
          for e in entries
          if e['variant'] != references[e['variant']]
        ),
      ),
    )
    for task, entries in by_task.items()
  ]
  costs = Table(
    title='cost',
    header=('variant', 'parameters', 'steps', 'steps/s', 'train minutes'),
    rows=tuple(_cost_row(entry) for entry in comparison['costs']),
  )
  return [*found, costs]


def as_text(comparison: dict[str, Any]) -> str:
  """Returns all tables as aligned lines, with what they show and caveats."""
  blocks = [text(table) for table in tables(comparison)]
  for lines in (comparison['claims'], comparison['caveats']):
    if lines:
      blocks.append('\n'.join(lines))
  return '\n\n'.join(blocks) + '\n'


def text(table: Table) -> str:
  """Returns one table as aligned lines."""
  lines = [table.header, *table.rows]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  block = [table.title]
  for first, *others in lines:
    cells = [first.ljust(widths[0])]
    cells += [c.rjust(w) for c, w in zip(others, widths[1:], strict=True)]
    block.append(f'  {"  ".join(cells)}'.rstrip())
  return '\n'.join(block)


def markdown(table: Table) -> str:
  """Returns one table in Markdown; numbers are aligned to the right."""
  rule = ('---', *['---:'] * (len(table.header) - 1))
  lines = [
    f'| {" | ".join(row)} |' for row in (table.header, rule, *table.rows)
  ]
  return '\n'.join([f'**{table.title}**', '', *lines]) + '\n'


def curves_csv(comparison: dict[str, Any]) -> str:
  """Returns every point of every learning curve, one a line."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(
    ['variant', 'seed', 'task', 'step', comparison['loss'], 'accuracy']
  )
  for curve in comparison['curves']:
    points = zip(curve['step'], curve['loss'], curve['accuracy'], strict=True)
    for point in points:
      writer.writerow([curve['variant'], curve['seed'], curve['task'], *point])
  return text.getvalue()


def _row(entry, metrics) -> tuple[str, ...]:
  spreads = [entry['metrics'][name] for name in metrics]
  return (entry['variant'], *(_number(spread, '.4f') for spread in spreads))


def _difference_row(entry, metrics, reference) -> tuple[str, ...]:
  spreads = [entry['metrics'][name]['difference'] for name in metrics]
  return (
    f'{entry["variant"]} - {reference}',
    *(_number(spread, '+.4f') for spread in spreads),
  )


def _cost_row(entry) -> tuple[str, ...]:
  minutes = {
    key: _each(value, lambda seconds: seconds / 60)
    for key, value in entry['train_seconds'].items()
  }
  parameters = entry['parameters']
  return (
    entry['variant'],
    'n/a' if parameters is None else f'{parameters:,}',
    f'{entry["steps"]:,}',
    _number(entry['steps_per_second'], '.2f'),
    _number(minutes, '.2f'),
  )


def _each(value, function):
  if isinstance(value, list):
    return [_each(item, function) for item in value]
  return None if value is None else function(value)


def _number(spread: dict[str, Any], form: str) -> str:
  """Returns the mean, with several seeds the range, and the p-value if any."""
  if spread['mean'] is None:
    return 'n/a'
  text = format(spread['mean'], form)
  if len(spread['values']) > 1:
    text += f' [{spread["min"]:{form}}, {spread["max"]:{form}}]'
  if spread.get('p_value') is not None:
    text += f' p={spread["p_value"]:.2g}'
  return text
