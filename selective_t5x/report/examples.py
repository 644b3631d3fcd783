"""Collects what the selective variants of a comparison mask, for its page."""

import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from selective_t5x.config import reader
from selective_t5x.report import viewer
from selective_t5x.runs import identity
from selective_t5x.runs.files import read_json, write_json

# More variants would only make the page long.
MOST_VARIANTS = 6
_FOLDER = 'masking'
_LOG = 'log.txt'
_IDENTITY = 'identity.json'


def masking_viewer(
  comparisons: Sequence[tuple[str, pathlib.Path, dict[str, Any]]], count: int
) -> list[Markup]:
  """Returns the viewer as a list of parts of a page; [] if there is no viewer.

  Args:
    comparisons: see `collect`.
    count: number of rows; 0: no viewer.
  """
  models = collect(comparisons, count) if count else {}
  if not models:
    return []
  return [Markup('<h2>What selection masks</h2>\n') + viewer.section(models)]


def collect(
  comparisons: Sequence[tuple[str, pathlib.Path, dict[str, Any]]], count: int
) -> dict[str, dict[str, Any]]:
  """Runs the missing reports of selective variants.

  It runs `python -m selective_t5x.report` for the first seed of each variant
  and writes into the subfolder masking of its result folder. A failed report is
  mentioned on stderr and left out.

  Args:
    comparisons: (name, folder of the cells, figures) of each comparison on the
      page, see `figures.compare_cells`; the name of a single one is ''.
    count: number of rows in total; each variant has at least one.

  Returns:
    {name: `packing.figures`}, for `viewer.section`.
  """
  shown = [
    (', '.join(filter(None, (name, cell['variant']))), folder / cell['name'])
    for name, folder, comparison in comparisons
    for cell in comparison['cells']
    if cell['seed'] == comparison['seeds'][0]
    and _selects(folder / cell['name'])
  ][:MOST_VARIANTS]
  models = {}
  for name, folder in shown:
    rows = max(1, count // len(shown))
    figures = _saved(folder / _FOLDER, rows)
    if figures is None:
      print(f'{name}: looking at what it masks', file=sys.stderr, flush=True)
      figures = _run(folder, rows)
    if figures is not None:
      models[name] = figures
  return models


def _selects(folder: pathlib.Path) -> bool:
  """Whether the attention in a run's configuration selects."""
  path = folder / 'config.gin'
  if not path.exists():
    return False
  attention = reader.read(path.read_text(), str(path)).macros().get('ATTENTION')
  function = getattr(attention and attention.value, 'selector', '')
  return function.endswith('selective_attention')


def _saved(folder, rows) -> dict[str, Any] | None:
  """Returns the figures of an earlier report of this model, or None."""
  if not (folder / viewer.FILE).exists():
    return None
  if identity.read(folder / _IDENTITY) != _identity(folder.parent):
    return None
  figures = read_json(folder / viewer.FILE)
  return figures if len(figures['examples']) == rows else None


def _identity(folder) -> identity.Identity:
  """Returns the identity of a report of a run."""
  checkpoint = identity.latest_checkpoint(folder)
  return {
    'content of config.gin': (folder / 'config.gin').read_text('utf-8'),
    **({} if checkpoint is None else identity.of_checkpoint(checkpoint)),
  }


def _run(folder, rows) -> dict[str, Any] | None:
  into = folder / _FOLDER
  into.mkdir(exist_ok=True)
  with open(into / _LOG, 'w', encoding='utf-8') as log:
    code = subprocess.run(
      [
        sys.executable,
        '-m',
        'selective_t5x.report',
        f'--checkpoint={folder}',
        f'--examples={rows}',
        f'--output_dir={into}',
      ],
      stdout=log,
      stderr=subprocess.STDOUT,
      check=False,
    ).returncode
  if code == 0:
    write_json(into / _IDENTITY, _identity(folder))
    return read_json(into / viewer.FILE)
  print(
    f'{folder}: the viewer leaves this run out (exit code {code}, '
    f'{into / _LOG})',
    file=sys.stderr,
  )
  return None
