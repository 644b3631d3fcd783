"""Comparisons at equal training time or at an equal number of parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from selective_t5x.report.statistics import correct, spread


def equal_time(
  curves: Sequence[dict[str, Any]],
  references: Mapping[str, str],
  seeds: Mapping[str, Sequence[int]],
) -> dict[str, Any] | None:
  """Returns the losses at the train time of the shortest run.

  Only train steps count as time. The loss is interpolated linearly between the
  evaluations of a run. It is None without an evaluation before and after.

  Args:
    curves: see `figures.compare_cells`; every seed evaluates each task.
    references: {variant: its reference, or itself}.
    seeds: {variant: its seeds}, in the order of a spread's values.

  Returns:
    train_seconds, and results: one entry per task and variant, {'task',
    'variant', 'loss': spread}, with the difference to the reference; None if a
    run did not measure its time.
  """
  ends = [c['train_seconds'][-1] for c in curves if c['task'] == 'train']
  if None in ends:
    return None
  end = min(ends)
  losses = {
    (c['task'], c['variant'], c['seed']): _loss_at(c, end) for c in curves
  }

  def seed_losses(task, variant, of):
    return [losses.get((task, of, seed)) for seed in seeds[variant]]

  tasks = dict.fromkeys(c['task'] for c in curves if c['task'] != 'train')
  results = [
    {
      'task': task,
      'variant': variant,
      'loss': spread(
        seed_losses(task, variant, variant),
        None if variant == reference else seed_losses(task, variant, reference),
      ),
    }
    for task in tasks
    for variant, reference in references.items()
  ]
  correct([r['loss'].get('difference', {}) for r in results])
  return {'train_seconds': end, 'results': results}


def equal_parameters(
  costs: Sequence[dict[str, Any]], references: Mapping[str, str]
) -> dict[str, Any]:
  """Returns whether variants have as many parameters as their references.

  Args:
    costs: see `figures.compare_cells`.
    references: {variant: its reference, or itself}.

  Returns:
    agree: True or False; None if a number is unknown.
    parameters: {variant: number}.
  """
  numbers = {cost['variant']: cost['parameters'] for cost in costs}
  agree = all(numbers[v] == numbers[r] for v, r in references.items())
  return {
    'agree': None if None in numbers.values() else agree,
    'parameters': numbers,
  }


def caveats(
  time: dict[str, Any] | None, parameters: dict[str, Any]
) -> list[str]:
  """Returns notes for readers of the two comparisons."""
  lines = []
  if time is None:
    lines.append('No view at equal time: a run did not measure its steps.')
  else:
    lines.append(
      'Equal time is the time of the train steps of the fastest run. Losses '
      'at that time are interpolated linearly between evaluations; the '
      'learning rate schedules of the other runs had not ended by then.'
    )
  lines.append(
    {
      True: 'Each variant has as many parameters as its reference.',
      False: 'Numbers of parameters differ, so that there is no view at equal '
      'parameters; a table has the losses against them.',
      None: 'Numbers of parameters are not known for all variants.',
    }[parameters['agree']]
  )
  return lines


def _loss_at(curve: dict[str, Any], seconds: float) -> float | None:
  times, losses = curve['train_seconds'], curve['loss']
  if not times or None in losses or not times[0] <= seconds <= times[-1]:
    return None
  return float(np.interp(seconds, times, losses))
