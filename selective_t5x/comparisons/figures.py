"""Computes the figures of a comparison from its finished cells.

The figures are one JSON value, comparison.json. Tables, plots and the page are
made from it alone, without the runs.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from selective_t5x.comparisons import claims, equal_cost, quantities
from selective_t5x.comparisons.plan import (
  CELL_FILE,
  Cell,
  differences,
  used_differences,
)
from selective_t5x.report import statistics
from selective_t5x.report.statistics import SEEDS_FOR_A_TEST, spread
from selective_t5x.runs import fingerprints
from selective_t5x.runs.files import RUN_FILE, read_json
from selective_t5x.runs.losses import Row
from selective_t5x.runs.metrics import read_run
from selective_t5x.runs.summary import read_summary

_SEED_COSTS = (
  'steps_per_second',
  'tokens_per_second',
  'train_seconds',
  'peak_rss_bytes',
  'live_keys',
)

_OTHER_ACCURACIES = (
  'Accuracies are not compared: those of runs with AVERAGE_PER_SEQUENCE are '
  'means over sequences, the others over tokens.'
)

Comparison = dict[str, Any]


def compare_cells(
  cells: Sequence[Cell], stopping: claims.Stopping | None = None
) -> Comparison:
  """Returns the figures of finished cells.

  Args:
    cells: all of a comparison. A variant may have fewer seeds than its
      reference, the first ones.
    stopping: the rule by which seeds were added; None: their number was fixed.

  Returns:
    variants, seeds: names and numbers, in the order of `plan`.
    seeds_of: {variant: number of its seeds}.
    stopping: margin and max_seeds of the rule, or None.
    references: {variant: its reference, or itself}.
    loss: the metric to compare: losses.LOSS, or T5X's 'loss' if the metrics do
      not give losses.LOSS.
    loss_definition: the definition of losses.LOSS, see `runs.losses`.
    train_task: name of the training task; None if gin does not bind a name.
    caveats: notes to print with every table of these figures.
    results: one entry per task and variant for the last evaluation: {'task',
      'variant', 'step', 'metrics': {name: spread}}. A spread has 'values' (one
      per seed), 'mean', 'min', 'max' and 'difference' (the spread of paired
      differences to the reference), see `spread`. A difference with a p_value
      has p_corrected, for the differences of this metric.
    claims: lines on what the differences of losses show.
    equal_time, equal_parameters: see `equal_cost`.
    costs: one entry per variant: parameters, steps, flops_per_step, step_bytes,
      and the spreads steps_per_second, tokens_per_second, train_seconds and
      peak_rss_bytes; see `runs.summary`.
    curves: one entry per cell and task with the lists 'step', 'train_seconds'
      (time of train steps so far, or None), 'loss' and 'accuracy'. The task
      'train' has the metrics of train steps.
    cells: name, variant, seed, command, fingerprints (see
      `fingerprints.of_run`) and last entry of run.json of each cell.
    differences: {binding: {variant: value}} of values set by gin files.
    used_differences: the same for all values in use, also unset ones; None if a
      run did not write them.

  Raises:
    UserError: a cell has no metrics, or the losses are not the same quantity.
  """
  summaries = _Summaries(cells)
  references, seeds = summaries.references, summaries.seeds
  loss = summaries.loss
  variants = list(references)
  runs = [_last_train_run(cell) for cell in cells]
  tasks = _tasks(cells[0], summaries[variants[0], seeds[0]])
  costs = [summaries.cost(variant) for variant in variants]
  curves = [
    curve
    for cell in cells
    for curve in _curves(cell, loss, ['train', *tasks], summaries.same_accuracy)
  ]
  equal_time = equal_cost.equal_time(curves, references, summaries.seeds_of)
  equal_parameters = equal_cost.equal_parameters(costs, references)
  results = [summaries.result(task, v) for task in tasks for v in variants]
  for metric in (loss, 'accuracy'):
    statistics.correct(
      [r['metrics'][metric].get('difference', {}) for r in results]
    )
  return {
    'variants': variants,
    'references': references,
    'seeds': seeds,
    'seeds_of': {v: len(of) for v, of in summaries.seeds_of.items()},
    'stopping': stopping and dataclasses.asdict(stopping),
    'loss': loss,
    'loss_definition': summaries[variants[0], seeds[0]]['loss_definition'],
    'train_task': cells[0].macro('MIXTURE_OR_TASK_NAME'),
    'caveats': [
      *_caveats(runs, summaries, stopping),
      *([] if summaries.same_accuracy else [_OTHER_ACCURACIES]),
      *_shared_machine(cells),
      *equal_cost.caveats(equal_time, equal_parameters),
    ],
    'results': results,
    'claims': claims.lines(results, references, loss, stopping)
    if len(seeds) >= SEEDS_FOR_A_TEST
    else [],
    'equal_time': equal_time,
    'equal_parameters': equal_parameters,
    'costs': costs,
    'curves': curves,
    'cells': [
      {
        'name': cell.name,
        'variant': cell.variant,
        'seed': cell.seed,
        'command': cell.command,
        'fingerprints': fingerprints.of_run(cell.folder, cell.bindings),
        'run': run,
      }
      for cell, run in zip(cells, runs, strict=True)
    ],
    'differences': differences(cells),
    'used_differences': used_differences(cells),
  }


class _Summaries(dict[tuple[str, int], dict[str, Any]]):
  """{(variant, seed): summary} of finished cells, and figures over the seeds.

  Attributes:
    references: {variant: its reference, or itself}.
    seeds: all seeds.
    seeds_of: {variant: its seeds}, in the order of a spread's values.
    loss: the metric to compare.
    same_accuracy: whether accuracies of all cells are the same quantity.
  """

  def __init__(self, cells: Sequence[Cell]):
    """Reads the summaries of cells."""
    super().__init__(
      ((cell.variant, cell.seed), read_summary(cell.folder)) for cell in cells
    )
    self.references = {cell.variant: cell.reference for cell in cells}
    self.seeds = list(dict.fromkeys(cell.seed for cell in cells))
    self.seeds_of: dict[str, list[int]] = {v: [] for v in self.references}
    for cell in cells:
      self.seeds_of[cell.variant].append(cell.seed)
    by_name = {cell.name: self[cell.variant, cell.seed] for cell in cells}
    self.loss = quantities.loss_metric(by_name)
    self.same_accuracy = quantities.same_accuracy(by_name)

  def seed_values(
    self, variant: str, *path: str, like: str | None = None
  ) -> list[Any]:
    """Returns the value at a path of the summaries, one per seed.

    Args:
      variant: whose summaries.
      *path: the names that lead to the value.
      like: the variant whose seeds count; None: all of the variant's own.
    """
    seeds = self.seeds_of[like or variant]
    values = [self[variant, seed] for seed in seeds]
    if path[-1] == 'accuracy' and not self.same_accuracy:
      return [None for _ in values]
    for name in path:
      values = [value.get(name) for value in values]
    return values

  def result(self, task: str, variant: str) -> dict[str, Any]:
    """Returns the last evaluation of a task, with paired differences."""
    last, reference = ('training_eval', task, 'last'), self.references[variant]
    return {
      'task': task,
      'variant': variant,
      'step': max(self.seed_values(variant, *last, 'step')),
      'metrics': {
        name: spread(
          self.seed_values(variant, *last, name),
          None
          if variant == reference
          else self.seed_values(reference, *last, name, like=variant),
        )
        for name in (self.loss, 'accuracy')
      },
    }

  def cost(self, variant: str) -> dict[str, Any]:
    """Returns the costs of a variant's runs."""
    return {
      'variant': variant,
      'parameters': self.seed_values(variant, 'parameters')[0],
      'steps': max(self.seed_values(variant, 'steps')),
      'flops_per_step': self.seed_values(variant, 'flops_per_step')[0],
      'step_bytes': self.seed_values(variant, 'step_bytes')[0],
      **{name: spread(self.seed_values(variant, name)) for name in _SEED_COSTS},
    }


def _tasks(cell: Cell, summary) -> list[str]:
  """Returns the evaluated tasks.

  T5X evaluates a mixture by task and also as a whole. The whole is redundant
  and left out.
  """
  tasks = list(summary['training_eval'])
  whole = cell.macro('EVAL_TASK_NAME')
  return [task for task in tasks if len(tasks) == 1 or task != whole]


def _curves(cell: Cell, loss: str, tasks: Sequence[str], same_accuracy: bool):
  """Yields the curves of a cell's training and evaluations."""
  metrics = read_run(cell.folder)
  seconds_at = _train_seconds(metrics.train)
  for task, rows in {'train': metrics.train, **metrics.training_eval}.items():
    if task in tasks:
      yield {
        'variant': cell.variant,
        'seed': cell.seed,
        'task': task,
        'step': [row['step'] for row in rows],
        'train_seconds': [seconds_at(row['step']) for row in rows],
        'loss': [row[loss] for row in rows],
        'accuracy': [
          row.get('accuracy') if same_accuracy else None for row in rows
        ],
      }


def _train_seconds(rows: list[Row]):
  """Returns a function from a step to the train time so far, or None."""
  steps = [row['step'] for row in rows]
  seconds = [row.get('timing/seconds') for row in rows]
  if None in seconds:
    return lambda step: None
  total = [0.0, *itertools.accumulate(seconds)]
  return lambda step: total[bisect.bisect_right(steps, step)]


def _last_train_run(cell: Cell) -> dict[str, Any]:
  """Returns the newest entry of the cell's run.json; {} if it has none."""
  path = cell.folder / RUN_FILE
  return read_json(path)['runs'][-1] if path.exists() else {}


def _shared_machine(cells) -> list[str]:
  """Returns a caveat if runs were trained at the same time."""
  paths = [cell.folder / CELL_FILE for cell in cells]
  jobs = [read_json(path).get('jobs', 1) for path in paths]
  if max(jobs) == 1:
    return []
  return [
    f'Up to {max(jobs)} runs trained at a time: times and speeds are those of '
    'a machine that they share.'
  ]


def _caveats(runs, summaries, stopping) -> list[str]:
  """Returns notes for readers of the figures."""
  counts = {v: len(of) for v, of in summaries.seeds_of.items()}
  lines = claims.caveats(counts, stopping)
  for what, values in {
    'engines': {run.get('engine') for run in runs},
    'commits of the suite': {
      (run.get('git') or {}).get('commit') for run in runs
    },
    'kinds of device': {run.get('device', {}).get('kind') for run in runs},
  }.items():
    if len(values) > 1:
      lines.append(
        f'The runs used different {what}: '
        f'{", ".join(sorted(map(str, values)))}.'
      )
  for (variant, seed), summary in summaries.items():
    for task, rows in summary['training_eval'].items():
      if rows['last']['step'] != summary['steps']:
        lines.append(
          f'{variant}, seed {seed}: {task} was last evaluated at step '
          f'{rows["last"]["step"]} of {summary["steps"]}.'
        )
  return lines
