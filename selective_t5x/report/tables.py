"""Makes a comparison's tables as text, Markdown and CSV."""

import csv
import dataclasses
import functools
import io
import re
import textwrap
from typing import Any

from tabulate import tabulate

from selective_t5x.report import statistics
from selective_t5x.runs.losses import LOSS

_LABELS = {LOSS: 'loss (nats/token)', 'loss': 'loss'}
_MIB = 2**-20

_aligned = functools.partial(tabulate, disable_numparse=True)
_NUMBER = re.compile(r'[+-]?\d')


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of texts: the first column names the row."""

  title: str
  header: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]


def label(metric: str) -> str:
  """Returns a metric's name with its unit."""
  return _LABELS.get(metric, metric)


def tables(comparison: dict[str, Any]) -> list[Table]:
  """Returns the tables of tasks, equal time, parameters and costs.

  The table at equal time needs runs that measured it. The table by parameters
  is only made if their number differs between variants.

  Args:
    comparison: see `figures.compare_cells`.
  """
  metrics = (comparison['loss'], 'accuracy')
  references = comparison['references']
  by_task: dict[str, list] = {}
  for result in comparison['results']:
    by_task.setdefault(result['task'], []).append(result)
  loss_tables = [
    Table(
      title=f'{task}, step {entries[0]["step"]:,}',
      header=('variant', *map(label, metrics)),
      rows=_with_differences(entries, metrics, references),
    )
    for task, entries in by_task.items()
  ]
  if comparison['equal_time']:
    loss_tables.append(_at_equal_time(comparison))
  if comparison['equal_parameters']['agree'] is False:
    loss_tables.append(_against_parameters(comparison))
  return [*loss_tables, *_costs(comparison['costs'])]


def as_text(comparison: dict[str, Any]) -> str:
  """Returns all tables as aligned lines, then the claims and the caveats."""
  blocks = [text(table) for table in tables(comparison)]
  for lines in (comparison['claims'], comparison['caveats']):
    if lines:
      blocks.append('\n'.join(lines))
  return '\n\n'.join(blocks) + '\n'


def text(table: Table) -> str:
  """Returns one table as aligned lines."""
  lines = _aligned(
    [table.header, *table.rows],
    tablefmt='plain',
    stralign='right',
    colalign=('left',),
  )
  return f'{table.title}\n{textwrap.indent(lines, "  ")}'


def markdown(table: Table) -> str:
  """Returns one table in Markdown, with columns of numbers to the right."""
  columns = list(zip(*table.rows, strict=True))[1:]
  numeric = (all(_NUMBER.match(x) for x in of if x) for of in columns)
  sides = ('left', *('right' if x else 'left' for x in numeric))
  lines = _aligned(table.rows, table.header, tablefmt='pipe', colalign=sides)
  return f'**{table.title}**\n\n{lines}\n'


def curves_csv(comparison: dict[str, Any]) -> str:
  """Returns all points of the learning curves as CSV, one per line."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  columns = ('step', 'train_seconds', 'loss', 'accuracy')
  names = {'loss': comparison['loss']}
  writer.writerow(
    ['variant', 'seed', 'task', *(names.get(c, c) for c in columns)]
  )
  for curve in comparison['curves']:
    for point in zip(*(curve[c] for c in columns), strict=True):
      writer.writerow([curve['variant'], curve['seed'], curve['task'], *point])
  return text.getvalue()


def _with_differences(entries, metrics, references) -> tuple:
  """Returns one row per variant, then one per difference."""
  return (
    *(_row(e, metrics) for e in entries),
    *(
      _difference_row(e, metrics, references[e['variant']])
      for e in entries
      if e['variant'] != references[e['variant']]
    ),
  )


def _row(entry, metrics) -> tuple[str, ...]:
  values = [entry['metrics'][name] for name in metrics]
  return (entry['variant'], *map(_metric, values))


def _difference_row(entry, metrics, reference) -> tuple[str, ...]:
  differences = [entry['metrics'][name]['difference'] for name in metrics]
  return (f'{entry["variant"]} - {reference}', *map(_difference, differences))


def _at_equal_time(comparison) -> Table:
  """Returns the losses of all tasks after the same train time."""
  by_variant = {name: {} for name in comparison['variants']}
  for entry in comparison['equal_time']['results']:
    by_variant[entry['variant']][entry['task']] = entry['loss']
  entries = [
    {'variant': name, 'metrics': losses} for name, losses in by_variant.items()
  ]
  tasks = tuple(entries[0]['metrics'])
  minutes = comparison['equal_time']['train_seconds'] / 60
  return Table(
    title=f'{label(comparison["loss"])} at equal train time, '
    f'{minutes:.2f} minutes',
    header=('variant', *tasks),
    rows=_with_differences(entries, tasks, comparison['references']),
  )


def _against_parameters(comparison) -> Table:
  """Returns the losses of all tasks, sorted by number of parameters."""
  parameters = comparison['equal_parameters']['parameters']
  tasks = list(dict.fromkeys(r['task'] for r in comparison['results']))
  losses = {
    (r['task'], r['variant']): r['metrics'][comparison['loss']]
    for r in comparison['results']
  }
  return Table(
    title=f'{label(comparison["loss"])} against parameters',
    header=('variant', 'parameters', *tasks),
    rows=tuple(
      (
        variant,
        f'{parameters[variant]:,}',
        *(_metric(losses[task, variant]) for task in tasks),
      )
      for variant in sorted(parameters, key=parameters.get)
    ),
  )


def _costs(costs) -> list[Table]:
  """Returns the tables of the costs of runs and of one train step."""
  return [
    Table(
      title='cost',
      header=(
        'variant',
        'parameters',
        'steps',
        'steps/s',
        'tokens/s',
        'train minutes',
      ),
      rows=tuple(
        (
          cost['variant'],
          _integer(cost['parameters']),
          f'{cost["steps"]:,}',
          _number(cost['steps_per_second'], '.2f'),
          _number(cost['tokens_per_second'], ',.0f'),
          _number(_scaled(cost['train_seconds'], 1 / 60), '.2f'),
        )
        for cost in costs
      ),
    ),
    _step_costs(costs),
  ]


def _step_costs(costs) -> Table:
  """Returns the table of one train step; live keys if any run counted them."""
  columns = {
    'GFLOPs in matrix products': lambda cost: _scaled_number(
      cost['flops_per_step'], 1e-9, ',.2f'
    ),
    'keys read by a query': lambda cost: _number(cost['live_keys'], ',.0f'),
    'memory of the step (MiB)': lambda cost: _scaled_number(
      cost['step_bytes'], _MIB, ',.1f'
    ),
    'peak of the process (MiB)': lambda cost: _number(
      _scaled(cost['peak_rss_bytes'], _MIB), ',.0f'
    ),
  }
  # Figures of earlier versions lack the entry.
  if not any(cost.get('live_keys', {}).get('mean') for cost in costs):
    del columns['keys read by a query']
  return Table(
    title='a train step',
    header=('variant', *columns),
    rows=tuple(
      (cost['variant'], *(column(cost) for column in columns.values()))
      for cost in costs
    ),
  )


def _integer(value: int | None) -> str:
  return 'n/a' if value is None else f'{value:,}'


def _scaled_number(value: float | None, factor: float, form: str) -> str:
  return 'n/a' if value is None else format(value * factor, form)


def _scaled(spread: dict[str, Any], factor: float) -> dict[str, Any]:
  return {key: _each(value, factor) for key, value in spread.items()}


def _each(value, factor):
  if isinstance(value, list):
    return [_each(item, factor) for item in value]
  return None if value is None else factor * value


def _metric(spread: dict[str, Any]) -> str:
  """Formats a loss or an accuracy, with more digits near zero."""
  return _number(spread, f'.{statistics.significant(spread["mean"] or 0, 4)}f')


def _difference(spread: dict[str, Any]) -> str:
  """Formats a paired difference with as many digits as its interval."""
  if spread['mean'] is None:
    return 'n/a'
  form = f'+.{statistics.decimals(spread, 4)}f'
  if len(spread['values']) == 1 or not statistics.all_equal(spread):
    return _number(spread, form)
  if statistics.is_zero(spread):
    return 'equal within rounding'
  return f'{spread["mean"]:{form}} in every seed'


def _number(spread: dict[str, Any], form: str) -> str:
  """Formats the mean, the range over several seeds, and the p-value if any.

  The p-value is the corrected one. Figures of earlier versions lack it.
  """
  if spread['mean'] is None:
    return 'n/a'
  text = format(spread['mean'], form)
  if len(spread['values']) > 1:
    text += f' [{spread["min"]:{form}}, {spread["max"]:{form}}]'
  p_value = spread.get('p_corrected', spread.get('p_value'))
  if p_value is not None:
    text += f' p={p_value:.2g}'
  return text
