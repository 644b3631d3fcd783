"""Measures what a trained selective model has learned to forget.

All functions read `masking.Masked` rows, whose F (axis 1 is the query) is the
sum of the selection scores S of earlier queries: S_i = F_{i+1} - F_i.

The rank of S was asked for by a public measurement on another model: where it
is low, F_ij folds into an additive gate with a few numbers a key. That one
layer keeps only the ends of sentences is a remark of the authors of
arXiv 2410.02703. The measures are ours.

Shapes: L layers, N tokens of a row.
"""

from collections.abc import Sequence

import numpy as np

from selective_t5x.report import masking, plots, tables
from selective_t5x.report.masking import TAU, Masked

# A token has this many later ones before it is asked whether it is gone.
LATER = 32
_SENTENCE_ENDS = ('.', '!', '?', '."', '!"', '?"', '.)')
_SINGULAR_VALUES = 32


def scores(of_row: np.ndarray) -> np.ndarray:
  """Returns S, f32[L, N - 1, N], of the F of a row, f32[L, N, N].

  Where a packed row starts another segment, S is 0.
  """
  return np.maximum(np.diff(of_row, axis=1), 0)


def ranks(rows: Sequence[Masked]) -> list[dict[str, float | list[float]]]:
  """Returns the rank of S in each layer, the mean over rows.

  Returns:
    for each layer: rank_99, the number of singular values that have 99 % of the
    sum of their squares; stable_rank, the sum of their squares over the largest
    square; spectrum, the first singular values over the largest; full, the
    largest rank that the rows allow. A row without any masking counts as rank
    0.
  """
  layers = []
  for layer in range(rows[0].masking.shape[0]):
    of_rows = [_rank(scores(row.masking)[layer]) for row in rows]
    spectrum = np.mean([r[2] for r in of_rows], axis=0)
    layers.append(
      {
        'rank_99': float(np.mean([r[0] for r in of_rows])),
        'stable_rank': float(np.mean([r[1] for r in of_rows])),
        'spectrum': [float(x) for x in spectrum],
        'full': float(np.mean([len(row.tokens) - 2 for row in rows])),
      }
    )
  return layers


def _rank(matrix: np.ndarray) -> tuple[int, float, np.ndarray]:
  values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
  spectrum = np.zeros(_SINGULAR_VALUES)
  if not values[0]:
    return 0, 0.0, spectrum
  energy = np.cumsum(values**2)
  count = min(_SINGULAR_VALUES, len(values))
  spectrum[:count] = values[:count] / values[0]
  rank = int(np.searchsorted(energy, 0.99 * energy[-1])) + 1
  return rank, float(energy[-1] / values[0] ** 2), spectrum


def kind(tokens: Sequence[str], position: int) -> str:
  """Returns the kind of a token: 'end of a sentence' or `masking.kind_of`."""
  if tokens[position].strip() in _SENTENCE_ENDS:
    return 'end of a sentence'
  return masking.kind_of(tokens, position)


def kinds(
  rows: Sequence[Masked], later: int = LATER
) -> dict[str, tuple[int, list[float]]]:
  """Returns how much of each kind of token every layer keeps.

  Args:
    rows: rows of one model.
    later: the number of later tokens after which it is asked.

  Returns:
    {kind: (number of tokens, [share of them whose F is below TAU then, of each
    layer])}, the most frequent kind first. The first token of a row, which
    nothing may mask, does not count.
  """
  by_kind: dict[str, list[np.ndarray]] = {}
  for row in rows:
    for position in range(1, len(row.tokens) - later):
      stays = row.masking[:, position + later, position] < TAU
      by_kind.setdefault(kind(row.tokens, position), []).append(stays)
  counted = sorted(by_kind.items(), key=lambda item: -len(item[1]))
  return {
    name: (len(of), [float(x) for x in np.mean(of, axis=0)])
    for name, of in counted
  }


def gone(rows: Sequence[Masked]) -> dict[str, list[float]]:
  """Returns how much of the context each layer has lost, over all rows.

  Returns:
    masked: share of the pairs of a query and an earlier key whose F is TAU or
      more.
    dead: share of the pairs that attention need not read (`Masked.read`); []
      if the attention function does not count them.
  """
  masked, pairs = 0, 0
  for row in rows:
    below = np.tri(len(row.tokens), k=-1, dtype=bool)
    masked = masked + np.sum((row.masking >= TAU) & below, axis=(1, 2))
    pairs += below.sum()
  counted = [row.read for row in rows]
  return {
    'masked': [float(x) for x in masked / max(pairs, 1)],
    'dead': []
    if any(x is None for x in counted)
    else [float(x) for x in 1 - np.mean(counted, axis=0)],
  }


def rank_table(layers: Sequence[dict]) -> tables.Table:
  """Returns the table of `ranks`."""
  return tables.Table(
    'rank of S',
    ('layer', '99 % of the squares', 'stable rank', 'most possible'),
    tuple(
      (
        str(i),
        f'{of["rank_99"]:.1f}',
        f'{of["stable_rank"]:.2f}',
        f'{of["full"]:.0f}',
      )
      for i, of in enumerate(layers)
    ),
  )


def kind_table(
  of_kinds: dict[str, tuple[int, list[float]]], later: int = LATER
) -> tables.Table:
  """Returns the table of `kinds`."""
  layers = len(next(iter(of_kinds.values()))[1]) if of_kinds else 0
  return tables.Table(
    f'share that is still visible {later} tokens later',
    ('kind of token', 'tokens', *(f'layer {i}' for i in range(layers))),
    tuple(
      (name, f'{count:,}', *(f'{share:.2f}' for share in shares))
      for name, (count, shares) in of_kinds.items()
    ),
  )


def figure_of_ranks(models: dict[str, Sequence[dict]]):
  """Returns a plot of the singular values of S, a line for each layer.

  Args:
    models: {name: `ranks`}.
  """
  return plots.lines(
    {
      f'{name}, layer {i}': (
        list(range(1, len(of['spectrum']) + 1)),
        of['spectrum'],
      )
      for name, layers in models.items()
      for i, of in enumerate(layers)
    },
    x_label='number of the singular value of S',
    y_label='over the largest',
  )


def figure_of_training(models: dict[str, dict[int, dict[str, list[float]]]]):
  """Returns a plot of the masked share of the context over the steps.

  Args:
    models: {name: {step: `gone`}}.
  """
  return plots.lines(
    {
      f'{name}, layer {i}': (
        list(steps),
        [of['masked'][i] for of in steps.values()],
      )
      for name, steps in models.items()
      for i in range(len(next(iter(steps.values()))['masked']))
    },
    x_label='steps',
    y_label='share of earlier keys with F of 1 or more',
  )


def figure_of_kinds(models: dict[str, dict[str, tuple[int, list[float]]]]):
  """Returns a map of what each layer keeps: a row for each kind of token.

  Args:
    models: {name: `kinds`}.
  """
  return plots.maps(
    {
      name: (list(of), [shares for _, shares in of.values()])
      for name, of in models.items()
    },
    x_label='layer',
    label=f'share still visible {LATER} tokens later',
  )
