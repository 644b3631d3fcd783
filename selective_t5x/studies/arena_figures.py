"""Computes the arena's figures from its cells: means over seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

LANGUAGE, NEEDLES = 'language', 'needles'
UNTRAINED = 'selective_untrained_gates'


def summary(
  cells: Sequence[Mapping[str, Any]], *, complete: bool = True
) -> dict[str, Any]:
  """Returns the figures of each policy on each model, means over seeds.

  Args:
    cells: from `arena.measure`, of both experiments.
    complete: whether they are all cells of the arena.

  Returns:
    seeds: their number; policies: {policy: {model: [figures]}}, the figures of
    one budget, from large to small: share of the keys, language_loss,
    needle_accuracy, cache_bytes, tokens_per_second, speed_over_whole and
    certificate, the largest of both experiments; None where nothing was
    measured; gates: see `of_gates`; load_average: [the least, the largest] of
    the machine while decoding was timed; complete.
  """
  grouped: dict[tuple[str, str], dict[str, list]] = {}
  for cell in cells:
    by_experiment = grouped.setdefault((cell['policy'], cell['model']), {})
    by_experiment.setdefault(cell['experiment'], []).append(cell['points'])
  policies: dict[str, dict[str, list]] = {}
  for (policy, model), by_experiment in grouped.items():
    count = len(next(iter(by_experiment.values()))[0])
    figures = []
    for i in range(count):

      def mean(experiment, key, i=i, found=by_experiment):
        values = [points[i][key] for points in found.get(experiment, [])]
        values = [value for value in values if value is not None]
        return sum(values) / len(values) if values else None

      certificates = [
        points[i]['certificate']['max']
        for of_seeds in by_experiment.values()
        for points in of_seeds
        if points[i]['certificate']
      ]
      figures.append(
        {
          'share': 1 if policy == 'whole' else 1 / (4, 8, 16)[i],
          'language_loss': mean(LANGUAGE, 'loss'),
          'needle_accuracy': mean(NEEDLES, 'accuracy'),
          'cache_bytes': mean(LANGUAGE, 'cache_bytes'),
          'tokens_per_second': mean(LANGUAGE, 'tokens_per_second'),
          'speed_over_whole': mean(LANGUAGE, 'speed_over_whole'),
          'certificate': max(certificates, default=None),
        }
      )
    policies.setdefault(policy, {})[model] = figures
  loads = [
    point['load_average']
    for cell in cells
    for point in cell['points']
    if point['load_average'] is not None
  ]
  return {
    'policies': policies,
    'gates': of_gates(policies),
    'load_average': [min(loads), max(loads)] if loads else None,
    'seeds': len({cell['seed'] for cell in cells}),
    'complete': complete,
  }


def of_gates(policies: Mapping[str, Mapping]) -> dict[str, list[dict]]:
  """Returns what training the gates gained, {model: one entry a budget}.

  Both sides evict by F; the other has the gates' initial parameters.

  Args:
    policies: see `summary`.

  Returns:
    share; language_loss and needle_accuracy, those of the trained gates less
    those of the untrained ones: of the loss a negative number is a gain, of the
    accuracy a positive one; None where nothing was measured.
  """

  def difference(trained, untrained, key):
    if trained[key] is None or untrained[key] is None:
      return None
    return trained[key] - untrained[key]

  return {
    model: [
      {
        'share': trained['share'],
        **{
          key: difference(trained, start, key)
          for key in ('language_loss', 'needle_accuracy')
        },
      }
      for trained, start in zip(
        policies['selective'][model], untrained, strict=True
      )
    ]
    for model, untrained in policies.get(UNTRAINED, {}).items()
    if model in policies.get('selective', {})
  }
