"""Shows the figures of the forgetting arena as table, plot and HTML."""

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from selective_t5x.report import page, plots, tables

_COLUMNS = {
  'language_loss': ('loss (nats/token)', '.4f'),
  'needle_accuracy': ('needle accuracy', '.3f'),
  'cache_bytes': ('bytes of a row', ',.0f'),
  'tokens_per_second': ('tokens/s', ',.0f'),
  'speed_over_whole': ('times the whole cache', '.2f'),
  'certificate': ('largest certificate', '.2g'),
}


def models_of(figures: Mapping[str, Any]) -> list[str]:
  """Returns the models' names."""
  return list(
    dict.fromkeys(
      model for by_model in figures['policies'].values() for model in by_model
    )
  )


def _every(figures: Mapping[str, Any]) -> Iterator[tuple[str, str, dict]]:
  """Yields (model, policy, the figures of one budget), by model."""
  for model in models_of(figures):
    for policy, by_model in figures['policies'].items():
      for of_budget in by_model.get(model, ()):
        yield model, policy, of_budget


def table(figures: Mapping[str, Any]) -> tables.Table:
  """Returns the figures of `arena_figures.summary`, one row a budget."""
  return tables.Table(
    title=f'the arena, means over seeds: {figures["seeds"]}'
    + ('' if figures['complete'] else '; the cells measured so far'),
    header=(
      'model',
      'policy',
      'share of the keys',
      *(name for name, _ in _COLUMNS.values()),
    ),
    rows=tuple(
      (
        model,
        policy,
        f'{of_budget["share"]:.4g}',
        *(
          '' if of_budget[key] is None else format(of_budget[key], form)
          for key, (_, form) in _COLUMNS.items()
        ),
      )
      for model, policy, of_budget in _every(figures)
    ),
  )


def frontier(figures: Mapping[str, Any]) -> list[tuple[str, str, dict]]:
  """Returns what no other has both a lower loss and fewer bytes than.

  They are (model, policy, figures of one budget), from few to many bytes.
  """
  every = [
    entry for entry in _every(figures) if entry[2]['language_loss'] is not None
  ]
  every.sort(key=lambda e: (e[2]['cache_bytes'], e[2]['language_loss']))
  best: list[tuple[str, str, dict]] = []
  for entry in every:
    if not best or entry[2]['language_loss'] < best[-1][2]['language_loss']:
      best.append(entry)
  return best


def figure(figures: Mapping[str, Any]):
  """Returns the plot of the loss against the keys, a curve a pair."""
  curves: dict[str, list[dict]] = {}
  for model, policy, of_budget in _every(figures):
    if of_budget['language_loss'] is not None and policy != 'whole':
      curves.setdefault(f'{model}, {policy}', []).append(of_budget)
  return plots.memory_curves(
    [
      plots.Curve(
        name,
        [1 / point['share'] for point in points],
        [point['language_loss'] for point in points],
      )
      for name, points in curves.items()
    ]
  )


def of_model(figures: Mapping[str, Any], model: str) -> tables.Table:
  """Returns a model's loss and needle accuracy, one row a policy."""
  by_policy = {
    policy: by_model[model]
    for policy, by_model in figures['policies'].items()
    if model in by_model
  }
  (whole,) = by_policy.pop('whole')
  columns = {
    'language_loss': ('loss', '.4f'),
    'needle_accuracy': ('needle accuracy', '.3f'),
  }
  budgets = next(iter(by_policy.values()), [])
  shares = [f'{of_budget["share"]:.4g}' for of_budget in budgets]
  return tables.Table(
    title=f'{model}: with every key '
    + ', '.join(
      f'{name} {format(whole[key], form)}'
      for key, (name, form) in columns.items()
      if whole[key] is not None
    ),
    header=(
      'policy',
      *(f'loss, {share}' for share in shares),
      *(f'needles, {share}' for share in shares),
    ),
    rows=tuple(
      (
        policy,
        *(
          '' if e[key] is None else format(e[key], form)
          for key, (_, form) in columns.items()
          for e in entries
        ),
      )
      for policy, entries in by_policy.items()
    ),
  )


def gates(figures: Mapping[str, Any]) -> tables.Table:
  """Returns what training the gates gained, one row a budget."""
  return tables.Table(
    title='trained gates less untrained ones',
    header=('model', 'share of the keys', 'loss', 'needle accuracy'),
    rows=tuple(
      (
        model,
        f'{entry["share"]:.4g}',
        *(
          '' if entry[key] is None else format(entry[key], form)
          for key, form in (
            ('language_loss', '+.4f'),
            ('needle_accuracy', '+.3f'),
          )
        ),
      )
      for model, entries in figures['gates'].items()
      for entry in entries
    ),
  )


def verdicts(figures: Mapping[str, Any]) -> list[str]:
  """Returns a sentence for each model with gates: whether training them pays.

  Only the seeds' means are compared; with one seed this is one observation.
  """
  sentences = []
  for model, entries in figures['gates'].items():
    parts = []
    for key, name, sign in (
      ('language_loss', 'a lower loss', -1),
      ('needle_accuracy', 'a higher needle accuracy', 1),
    ):
      gains = [sign * e[key] for e in entries if e[key] is not None]
      if gains:
        better = sum(gain > 0 for gain in gains)
        parts.append(f'{name} at {better} of {len(gains)} budgets')
    sentences.append(
      f'{model}: the trained gates have {" and ".join(parts)} than their '
      'untrained start'
    )
  return sentences


def text(figures: Mapping[str, Any]) -> str:
  """Returns all figures as aligned lines, and what they say about gates."""
  blocks = [tables.text(table(figures))]
  if figures['gates']:
    blocks += [tables.text(gates(figures)), '\n'.join(verdicts(figures))]
  return '\n\n'.join(blocks)


def section(figures: Mapping[str, Any]) -> Markup:
  """Returns the part of a page, as HTML."""
  best = frontier(figures)
  return page.render(
    'arena.html',
    figure=plots.svg(figure(figures), 'arena'),
    frontier=tables.Table(
      title='',
      header=('model', 'policy', 'share of the keys', 'bytes', 'loss'),
      rows=tuple(
        (
          model,
          policy,
          f'{of_budget["share"]:.4g}',
          f'{of_budget["cache_bytes"]:,.0f}',
          f'{of_budget["language_loss"]:.4f}',
        )
        for model, policy, of_budget in best
      ),
    ),
    every=table(figures),
    gates=gates(figures),
    verdicts=verdicts(figures),
    models=[
      of_model(figures, model)
      for model in models_of(figures)
      if model in figures['policies'].get('whole', {})
    ],
    load=figures['load_average'],
  )
