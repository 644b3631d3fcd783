"""The table and the JSON file of a config's costs on a topology."""

import json
import os
from collections.abc import Mapping, Sequence

from selective_t5x.costs.costs import ASSUMPTIONS, Costs
from selective_t5x.costs.gpus import Node
from selective_t5x.costs.topologies import Slice
from selective_t5x.report import tables

FILE = 'precompile.json'


def text(part: Slice | Node, configs: Mapping[str, Sequence[Costs]]) -> str:
  """Returns a table for each step, with a column for each config.

  Args:
    part: the slice that the steps were compiled for.
    configs: {name of a config: its steps' costs}, the same steps in each; the
      ratios are relative to the first.
  """
  chip = part.chip
  lines = [
    f'{_names(part)}: {part.chips} chips, {part.hosts} hosts; '
    f'a chip has {_gib(chip.hbm_bytes)} GiB, {chip.flops / 1e12:g} TFLOP/s in '
    f'bfloat16, {chip.hbm_bytes_per_second / 1e9:g} GB/s to its memory and '
    f'{chip.ici_bytes_per_second / 1e9:g} GB/s to other chips'
  ]
  for steps in zip(*configs.values(), strict=True):
    lines += ['', tables.text(_table(steps, list(configs)))]
  lines += ['', 'Assumptions:', *(f'- {line}' for line in ASSUMPTIONS)]
  for name, steps in configs.items():
    lines += [f'{name}: {line}' for line in problems(part, steps)]
  return '\n'.join(lines)


def problems(part: Slice | Node, steps: Sequence[Costs]) -> list[str]:
  """Returns a line for each step that does not fit, with possible remedies."""
  return [
    f'the {costs.step} step does not fit: {_gib(costs.total)} GiB of '
    f'{_gib(part.chip.hbm_bytes)} GiB. {_help(costs)}'
    for costs in steps
    if not costs.fits
  ]


def write(
  folder: str, part: Slice | Node, configs: Mapping[str, Sequence[Costs]]
) -> str:
  """Writes everything as JSON; returns the file's path."""
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, FILE)
  record = {
    'topology': part.topology,
    'slice': part.name,
    'chips': part.chips,
    'hbm_bytes': part.chip.hbm_bytes,
    'assumptions': ASSUMPTIONS,
    'configs': {
      name: {costs.step: costs.record() for costs in steps}
      for name, steps in configs.items()
    },
  }
  with open(path, 'w') as file:
    json.dump(record, file, indent=2)
  return path


def _table(steps: Sequence[Costs], names: Sequence[str]) -> tables.Table:
  rows = [
    ('parameters, GiB', *(_gib(c.parameters) for c in steps)),
    ('optimizer, GiB', *(_gib(c.optimizer) for c in steps)),
    ('temporaries, GiB', *(_gib(c.temporaries) for c in steps)),
    ('memory, GiB', *(_gib(c.total) for c in steps), *_ratios(steps, 'total')),
    ('fits', *('yes' if c.fits else 'NO' for c in steps)),
  ]
  if all(c.seconds for c in steps):
    flops = [f'{c.flops / 1e12:.4g}' for c in steps]
    moved = [f'{c.bytes_moved / 1e9:.4g}' for c in steps]
    rows += [
      ('operations, TFLOP', *flops, *_ratios(steps, 'flops')),
      ('bytes moved, GB', *moved, *_ratios(steps, 'bytes_moved')),
    ]
    for kind in sorted({kind for c in steps for kind in c.collectives}):
      cells = [c.collectives.get(kind) for c in steps]
      rows.append(
        (
          f'{kind}, GB (count)',
          *(
            f'{x["bytes"] / 1e9:.4g} ({x["count"]:.0f})' if x else '0'
            for x in cells
          ),
        )
      )
    rows += [
      (f'{name} alone, ms', *(_ms(c.seconds[name]) for c in steps))
      for name in steps[0].seconds
    ]
    least = [_ms(c.step_seconds) for c in steps]
    rows += [
      ('step at least, ms', *least, *_ratios(steps, 'step_seconds')),
      ('limited by', *(c.limit for c in steps)),
    ]
  title = f'{steps[0].step} step, per device'
  return tables.Table(title, ('', *names), tuple(rows))


def _ratios(steps: Sequence[Costs], field: str) -> list[str]:
  first, *others = (getattr(costs, field) for costs in steps)
  return [f'x{value / first:.3f}' for value in others if first]


def _help(costs: Costs) -> str:
  state = costs.parameters + costs.optimizer
  if state > costs.total / 2:
    return (
      'Most of it is parameters and optimiser: more '
      'PjitPartitioner.num_partitions, or '
      'standard_logical_axis_rules.parameter_partitioning_dims = 2, which '
      'shards them over the data axis too, would help'
    )
  return (
    'Most of it is temporaries: more NUM_MICROBATCHES, a smaller BATCH_SIZE, '
    "REMAT_POLICY = 'minimal' or 'full', more PjitPartitioner.num_partitions "
    "or DTYPE = 'bfloat16' would help"
  )


def _names(part: Slice | Node) -> str:
  if part.name == part.topology:
    return part.name
  return f'{part.topology} ({part.name})'


def _gib(count: int | None) -> str:
  return '-' if count is None else f'{count / 2**30:.4g}'


def _ms(seconds: float) -> str:
  return f'{seconds * 1e3:.4g}'
