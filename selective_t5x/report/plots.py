"""Draws the plots of comparisons and of pruned caches."""

import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import PIL.Image
from matplotlib import ticker
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from selective_t5x.report import tables

# Okabe and Ito's colours for colour-blind readers, adapted to stand out on
# white and on black.
_COLORS = ('#d55e00', '#2a86c8', '#009e73', '#b8618f', '#b8860b', '#7a7f85')
_LINES = ('-', '--', ':', '-.')
_STYLE = {
  'font.size': 10,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'axes.axisbelow': True,
  'axes.titlelocation': 'left',
  'axes.titlesize': 10,
  'axes.titleweight': 'bold',
  'legend.frameon': False,
  'svg.fonttype': 'none',
}
# In an SVG the page's own colours of light or dark mode replace these.
_INK, _GRID = '#1b1c1d', '#d8d9da'
_INKED = ('text.color', 'axes.labelcolor', 'axes.edgecolor')
_STYLE |= dict.fromkeys((*_INKED, 'xtick.color', 'ytick.color'), _INK)
_STYLE['grid.color'] = _GRID


def learning_curves(comparison: dict[str, Any]) -> Figure:
  """Returns a row of two panels per task: loss and accuracy.

  Lines with dots are evaluations. Thin lines are the train steps; they are in
  the panels of the training task. With several seeds a line is their mean and a
  band their range.

  Args:
    comparison: see `figures.compare_cells`.
  """
  tasks = list(dict.fromkeys(r['task'] for r in comparison['results']))
  train_task = comparison['train_task']
  if train_task not in tasks:
    train_task = 'train'
    tasks = ['train', *tasks]
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(9, 0.6 + 2.7 * len(tasks)), layout='constrained')
    axes = figure.subplots(len(tasks), 2, squeeze=False, sharex=True)
    for row, task in zip(axes, tasks, strict=True):
      for axis, metric in zip(row, ('loss', 'accuracy'), strict=True):
        _panel(axis, comparison, task, metric, train_task)
      row[0].set_title('train steps' if task == 'train' else task)
      row[0].set_ylabel(tables.label(comparison['loss']))
      row[1].set_ylabel('accuracy')
    for axis in axes[-1]:
      axis.set_xlabel('steps')
    handles = _legend(comparison)
    figure.legend(handles=handles, loc='outside upper left', ncols=len(handles))
  return figure


@dataclasses.dataclass(frozen=True)
class Curve:
  """Losses in nats per token, with a name for the legend.

  Attributes:
    name: curves of the same name, one per seed, have the same colour.
    places: the values of the other axis, e.g. memory factors.
    losses: as many.
  """

  name: str
  places: Sequence[float]
  losses: Sequence[float]


def memory_curves(curves: Sequence[Curve]) -> Figure:
  """Returns a plot of the loss against the memory factor."""
  return _loss_curves(curves, 'times fewer keys in the cache', log=True)


def position_curves(curves: Sequence[Curve]) -> Figure:
  """Returns a plot of the loss against the position of the token."""
  return _loss_curves(curves, 'position in the text', log=False)


def _loss_curves(curves, places, *, log) -> Figure:
  """Returns a plot of losses; `places` names the other axis."""
  names = list(dict.fromkeys(curve.name for curve in curves))
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(7, 4.4), layout='constrained')
    axis = figure.subplots()
    for curve in curves:
      number = names.index(curve.name)
      axis.plot(
        curve.places,
        curve.losses,
        _line(number),
        marker='o',
        color=_COLORS[number % len(_COLORS)],
        linewidth=1.6,
        markersize=3,
      )
    if log:
      axis.set_xscale('log', base=2)
      axis.xaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))
    axis.set_xlabel(places)
    axis.set_ylabel('loss (nats/token)')
    handles = [
      Line2D(
        [],
        [],
        color=_COLORS[i % len(_COLORS)],
        linestyle=_line(i),
        linewidth=3,
        label=name,
      )
      for i, name in enumerate(names)
    ]
    figure.legend(handles=handles, loc='outside upper left', ncols=2)
  return figure


def lines(
  curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
  x_label: str,
  y_label: str,
) -> Figure:
  """Returns a plot of named curves.

  Args:
    curves: {name: (x, y)}.
    x_label: label of the horizontal axis.
    y_label: label of the vertical axis.
  """
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(7, 4.4), layout='constrained')
    axis = figure.subplots()
    for number, (name, (x, y)) in enumerate(curves.items()):
      axis.plot(
        x,
        y,
        _line(number),
        marker='o',
        color=_COLORS[number % len(_COLORS)],
        linewidth=1.6,
        markersize=3,
        label=name,
      )
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    figure.legend(loc='outside upper left', ncols=2)
  return figure


def maps(
  panels: Mapping[str, tuple[Sequence[str], Sequence[Sequence[float]]]],
  x_label: str,
  label: str,
) -> Figure:
  """Returns a map of shares from 0 to 1 for each panel, with their values.

  Args:
    panels: {title: (names of the rows, values of each row)}.
    x_label: label of the columns, which are numbered.
    label: what a value is.
  """
  rows = max(len(names) for names, _ in panels.values())
  with matplotlib.rc_context({**_STYLE, 'axes.grid': False}):
    figure = Figure(
      figsize=(1 + 4 * len(panels), 1.6 + 0.36 * rows), layout='constrained'
    )
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, (names, values)) in zip(
      axes, panels.items(), strict=True
    ):
      image = axis.imshow(values, cmap='Blues', vmin=0, vmax=1, aspect='auto')
      axis.set_title(title)
      axis.set_yticks(range(len(names)), names)
      axis.set_xticks(range(len(values[0])))
      axis.set_xlabel(x_label)
      for row, of_row in enumerate(values):
        for column, value in enumerate(of_row):
          ink = 'white' if value > 0.6 else _INK
          axis.text(
            column, row, f'{value:.2f}', ha='center', va='center', color=ink
          )
    figure.colorbar(image, ax=list(axes), label=label)
  return figure


def _line(number: int) -> str:
  """Returns a line style; each reuse of the colours has another one."""
  return _LINES[number // len(_COLORS) % len(_LINES)]


def mean_curve(comparison, variant, task, metric) -> tuple[list, ...]:
  """Returns (steps, means, lowest, highest) over the seeds of a variant.

  Only steps where every seed of the variant has a finite value count.

  Args:
    comparison: see `figures.compare_cells`.
    variant: its name.
    task: as in the curves, 'train' for the train steps.
    metric: 'loss' or 'accuracy'.
  """
  by_step: dict[int, list] = {}
  seeds = 0
  for curve in comparison['curves']:
    if (curve['variant'], curve['task']) == (variant, task):
      seeds += 1
      for step, value in zip(curve['step'], curve[metric], strict=True):
        by_step.setdefault(step, []).append(value)
  complete = {
    step: values
    for step, values in sorted(by_step.items())
    if len(values) == seeds and None not in values
  }
  values = complete.values()
  return (
    list(complete),
    [sum(v) / len(v) for v in values],
    [min(v) for v in values],
    [max(v) for v in values],
  )


def png(figure: Figure) -> bytes:
  """Returns the figure as a PNG file on white, in 256 colours.

  A chart has few colours, so the palette leaves a third of the bytes.
  """
  drawn, file = io.BytesIO(), io.BytesIO()
  figure.savefig(drawn, format='png', dpi=150, facecolor='white')
  with PIL.Image.open(drawn) as image:
    palette = image.convert('RGB').quantize(256, dither=PIL.Image.Dither.NONE)
  palette.save(file, format='png', optimize=True)
  return file.getvalue()


def svg(figure: Figure, prefix: str) -> str:
  """Returns the figure as an <svg> element for a page.

  It takes its colours from the page: text is currentColor, lines of the grid
  are var(--line).

  Args:
    figure: the figure to draw.
    prefix: prefix of all ids, which must be unique in a page.
  """
  file = io.StringIO()
  nothing = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
  with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': prefix}):
    figure.savefig(file, format='svg', transparent=True, metadata=nothing)
  text = file.getvalue()
  text = text[text.index('<svg') :]
  text = re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>{prefix}-', text)
  text = re.sub(r'<defs>\s*<style.*?</style>\s*</defs>', '', text, flags=re.S)
  # The page sets the width; viewBox keeps the proportions.
  text = re.sub(r' (width|height)="[\d.]+pt"', '', text, count=2)
  return text.replace(_INK, 'currentColor').replace(_GRID, 'var(--line)')


def _panel(axis, comparison, task, metric, train_task) -> None:
  """Draws all variants on one task; `train_task` is the training task."""
  highest = []
  for number, variant in enumerate(comparison['variants']):
    color = _COLORS[number % len(_COLORS)]
    if task == train_task:
      points = mean_curve(comparison, variant, 'train', metric)
      axis.plot(*points[:2], color=color, linewidth=0.8, alpha=0.6)
    if task != 'train':
      steps, means, lows, highs = mean_curve(comparison, variant, task, metric)
      axis.plot(steps, means, 'o-', color=color, linewidth=1.8, markersize=3)
      if len(comparison['seeds']) > 1:
        axis.fill_between(
          steps, lows, highs, color=color, alpha=0.2, linewidth=0
        )
      highest += highs
  if metric == 'accuracy':
    highest = [0.1, *axis.get_ylim()]
    axis.set_ylim(-0.03 * max(highest), min(1.03, max(highest)))
  elif highest:
    # The losses of the first train steps would flatten everything else.
    bottom = axis.get_ylim()[0]
    axis.set_ylim(bottom, max(highest) + 0.08 * (max(highest) - bottom))
  axis.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))


def _legend(comparison) -> list[Line2D]:
  variants = [
    Line2D([], [], color=_COLORS[i % len(_COLORS)], linewidth=3, label=name)
    for i, name in enumerate(comparison['variants'])
  ]
  thin = Line2D(
    [], [], color=_INK, linewidth=0.8, alpha=0.6, label='train steps'
  )
  dots = Line2D(
    [], [], color=_INK, marker='o', markersize=3, label='evaluation'
  )
  return [*variants, dots, thin]
