r"""Measures how small the KV cache can be with selective attention and rivals.

  python -m selective_t5x.studies.pruning --seeds=3

Trains gin/experiments/wikipedia_sample_lm.gin with plain attention, selective
attention, and selective attention with the memory loss. Then searches the
budget of every layer (selective_t5x.pruning.search): of the selective models
with their own policy, of the baseline with H2O, TOVA and a window. The same
command resumes an interrupted study. The last line printed is JSON: mean memory
factors over seeds.

The search reads the first batches of the validation split. A memory factor
counts if the loss holds on these batches and on the next ones, which the search
did not see, each compared with the loss without pruning.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from selective_t5x.budgets import search
from selective_t5x.cli import exits, flags
from selective_t5x.comparisons import compare, plan
from selective_t5x.pruning import H2O, TOVA, Policy, Selective, Window
from selective_t5x.report import plots, tables
from selective_t5x.runs import restore
from selective_t5x.runs.files import write_json
from selective_t5x.runs.record import write_run_record
from selective_t5x.studies import command

NAME = 'pruning'
GIN_FILES = ('gin/experiments/wikipedia_sample_lm.gin',)
_SELECTIVE = 'gin/attention/selective.gin'
VARIANTS = (
  plan.Variant('baseline', ('gin/attention/baseline.gin',)),
  plan.Variant('selective', (_SELECTIVE,)),
  plan.Variant(
    'selective_memory_loss', (_SELECTIVE, 'gin/attention/memory_loss.gin')
  ),
)
RIVALS: dict[str, Policy] = {
  'h2o_on_baseline': H2O(),
  'tova_on_baseline': TOVA(),
  'window_on_baseline': Window(),
}
OWN = ('selective', 'selective_memory_loss')
TOLERANCE = 0.01

# {name of model and policy: finished search} of one seed
Searches = dict[str, dict[str, Any]]


def search_seed(
  output_dir: pathlib.Path, seed: int, tuning_batches: int, report_batches: int
) -> Searches:
  """Searches the budgets of one seed's models, or resumes the searches."""

  def search_model(run, name, policy, target_loss):
    return search.search(
      run,
      policy,
      output_dir=output_dir / 'searches' / plan.folder_name(name, seed),
      target_loss=target_loss,
      tolerance=TOLERANCE,
      tuning_batches=tuning_batches,
      report_batches=report_batches,
    )

  with restore.restored(
    str(output_dir / plan.folder_name('baseline', seed))
  ) as run:
    searches = {
      name: search_model(run, name, policy, None)
      for name, policy in RIVALS.items()
    }
  baseline = searches['window_on_baseline']['path'][0]['tuning_loss']
  for name in OWN:
    with restore.restored(
      str(output_dir / plan.folder_name(name, seed))
    ) as run:
      searches[name] = search_model(run, name, Selective(), baseline)
  return searches


def best_point(
  finished: dict[str, Any], reference: dict[str, float], tolerance: float
) -> dict[str, Any] | None:
  """Returns the point with the smallest cache whose losses are low enough.

  Args:
    finished: the record of a search.
    reference: the tuning_loss and report_loss to reach.
    tolerance: relative excess over each that is allowed.

  Returns:
    a point of the search's path; None if no point reaches the losses.
  """
  points = [
    point
    for point in finished['path']
    if all(
      point[name] <= reference[name] * (1 + tolerance)
      for name in ('tuning_loss', 'report_loss')
    )
  ]
  return max(points, key=lambda point: point['memory_factor'], default=None)


def best_points(searches: Searches) -> dict[str, dict[str, Any]]:
  """Returns {'at_baseline_loss' and 'within_1_percent': {name: point}}."""
  baseline = searches['window_on_baseline']['path'][0]
  names = [*OWN, *RIVALS]
  return {
    'at_baseline_loss': {
      # The pruned baseline hardly reaches its own loss without a tolerance.
      name: best_point(
        searches[name], baseline, TOLERANCE if name in RIVALS else 0
      )
      for name in names
    },
    'within_1_percent': {
      name: best_point(searches[name], searches[name]['path'][0], TOLERANCE)
      for name in names
    },
  }


def summary(every: Sequence[Searches]) -> dict[str, Any]:
  """Returns the headline figures.

  Args:
    every: the searches of each seed.

  Returns:
    mean memory factors L * N / sum of K_l over seeds; None if a seed has none.
  """
  points = [best_points(searches) for searches in every]

  def means(kind):
    factors = {}
    for name in (*OWN, *RIVALS):
      values = [
        p[kind][name] and p[kind][name]['memory_factor'] for p in points
      ]
      factors[name] = None if None in values else sum(values) / len(values)
    return factors

  return {
    'context': every[0]['selective']['settings']['context'],
    'seeds': len(every),
    'memory_factor_at_baseline_loss': means('at_baseline_loss'),
    'memory_factor_within_1_percent_of_own_loss': means('within_1_percent'),
  }


def as_text(every: Sequence[Searches]) -> str:
  """Returns a table of losses on unseen batches and of the budgets."""
  rows = []
  for seed, searches in enumerate(every):
    points = best_points(searches)
    for name in (*OWN, *RIVALS):
      full = searches[name]['path'][0]
      row = [str(seed), f'{full["report_loss"]:.4f}']
      for kind in points.values():
        point = kind[name]
        row += (
          ['none', '', '']
          if point is None
          else [
            f'{point["memory_factor"]:.1f}',
            f'{point["report_loss"]:.4f}',
            ' '.join(map(str, point['budgets'])),
          ]
        )
      rows.append((name, *row))
  table = tables.Table(
    title='memory factors; losses on batches that no search saw (nats/token)',
    header=(
      'model and policy',
      'seed',
      'unpruned',
      'at the baseline loss',
      'loss',
      'budgets',
      'within 1 % of own',
      'loss',
      'budgets',
    ),
    rows=tuple(rows),
  )
  return tables.text(table)


def main(argv: Sequence[str]) -> None:
  """Runs `python -m selective_t5x.studies.pruning`."""
  args, bindings = command.parse(
    NAME,
    __doc__,
    argv,
    tuning_batches=(8, 'for the search'),
    report_batches=(8, 'after them, for the report'),
  )
  comparison = compare.of_flags(VARIANTS, args, bindings, GIN_FILES)
  if comparison is None:
    return
  output_dir = pathlib.Path(args.output_dir)
  every = [
    search_seed(output_dir, seed, args.tuning_batches, args.report_batches)
    for seed in range(args.seeds)
  ]
  figures = summary(every)
  text = as_text(every)
  write_run_record(output_dir, run_mode='study', seed=None)
  write_json(
    output_dir / f'{NAME}.json',
    {
      'command': flags.command_line(),
      'figures': figures,
      'points': [best_points(searches) for searches in every],
    },
  )
  (output_dir / f'{NAME}.txt').write_text(text, encoding='utf-8')
  curves = [
    plots.Curve(
      name,
      [point['memory_factor'] for point in searches[name]['path']],
      [point['report_loss'] for point in searches[name]['path']],
    )
    for searches in every
    for name in (*OWN, *RIVALS)
  ]
  (output_dir / f'{NAME}.png').write_bytes(
    plots.png(plots.memory_curves(curves))
  )
  print(tables.as_text(comparison))
  print(text)
  print(json.dumps(figures))


if __name__ == '__main__':
  exits.run_main(main)
