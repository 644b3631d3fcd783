"""Shows the progress of a comparison and of its running cells."""

import sys
import time
from collections.abc import Sequence

import tqdm

import selective_t5x
from selective_t5x.comparisons.plan import Cell
from selective_t5x.runs.files import METRICS_FILE, TRAIN_FOLDER
from selective_t5x.runs.losses import Row
from selective_t5x.runs.metrics import read_metrics

_LINE_SECONDS = 20


class Progress:
  """A progress bar for all cells and one per running cell; a context manager.

  If stderr is no terminal, it prints a line now and then instead.
  """

  def __init__(self, cells: Sequence[Cell]):
    """Takes all cells."""
    self._count, self._ended = len(cells), 0
    self._steps = {cell.name: _steps_done(cell) for cell in cells}
    totals = [cell.total_steps for cell in cells]
    self._bar = _bar(
      None if None in totals else sum(totals),
      desc='all',
      initial=sum(self._steps.values()),
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._bar.close()

  def say(self, line: str) -> None:
    """Prints a line above the bars."""
    tqdm.tqdm.write(line, file=sys.stderr)

  def line(self, cell: Cell) -> '_Line':
    """Returns the line of a starting cell; a context manager."""
    return _Line(self, cell)

  def end(self, cell: Cell, how: str) -> None:
    """Prints how a cell ended, and counts it."""
    self._ended += 1
    self.say(f'[{self._ended}/{self._count}] {cell.name}: {how}')
    self.count(cell, _steps_done(cell))

  def count(self, cell: Cell, steps: int) -> None:
    """Updates the total with the steps that a cell has done."""
    self._steps[cell.name] = steps
    self._bar.set_postfix_str(f'{self._ended} of {self._count} runs', False)
    self._bar.update(sum(self._steps.values()) - self._bar.n)
    self._bar.refresh()


class _Line:
  """The line of one running cell."""

  def __init__(self, progress: Progress, cell: Cell):
    self._progress, self._cell = progress, cell
    self._size, self._step = 0, None
    self._reported_at = time.monotonic()
    self._bar = _bar(cell.total_steps, desc=cell.name, leave=False)
    # T5X's metrics are TensorBoard events, which are only read at the end.
    embedded = selective_t5x.engine_name() == 'embedded'
    self._bar.set_postfix_str('starting' if embedded else 'see its log')

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._bar.close()

  def update(self) -> None:
    """Reads the cell's newest metrics and shows them."""
    path = _train_folder(self._cell) / METRICS_FILE
    size = path.stat().st_size if path.exists() else 0
    if size != self._size:
      self._size = size
      row = _last_row(self._cell)
      if row and row['step'] != self._step:
        self._show(row)
    self._bar.refresh()

  def _show(self, row: Row) -> None:
    if self._step is None:
      # The rate excludes start-up and the steps before a resume.
      self._bar.reset()
      self._bar.initial = self._bar.n = row['step']
    self._step = row['step']
    loss = 'n/a' if row['loss'] is None else f'{row["loss"]:.4f}'
    self._bar.set_postfix_str(f'loss {loss}', refresh=False)
    self._bar.update(self._step - self._bar.n)
    self._progress.count(self._cell, self._step)
    if (
      self._bar.disable and time.monotonic() - self._reported_at > _LINE_SECONDS
    ):
      self._reported_at = time.monotonic()
      position = f'{self._step}/{self._cell.total_steps or "?"}'
      self._progress.say(f'{self._cell.name}: step {position}, loss {loss}')


def _bar(total: int | None, **options) -> tqdm.tqdm:
  return tqdm.tqdm(
    total=total,
    unit='step',
    dynamic_ncols=True,
    disable=not sys.stderr.isatty(),
    **options,
  )


def _train_folder(cell: Cell):
  return cell.folder / TRAIN_FOLDER


def _steps_done(cell: Cell) -> int:
  if cell.finished:
    return cell.total_steps or 0
  row = _last_row(cell)
  return row['step'] if row else 0


def _last_row(cell: Cell) -> Row | None:
  """Returns the newest train metrics; None if there are none yet."""
  folder = _train_folder(cell)
  if not (folder / METRICS_FILE).exists():
    return None
  rows = read_metrics(folder)
  return rows[-1] if rows else None
