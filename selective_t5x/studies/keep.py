r"""Copies the files of a study that the pages of docs/ read, without the runs.

  python -m selective_t5x.studies.keep results/study_fast docs/studies/fast

It copies the study's figures, tables and plots, and each comparison's table and
figures. The figures have no learning curves, and one entry of provenance per
run: its command, commit and device, and the fingerprints of its bindings, data
and program (selective_t5x.studies.verify compares them). The commands recreate
everything else (metrics, summaries, checkpoints).
"""

import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

from selective_t5x.cli import exits
from selective_t5x.errors import UserError
from selective_t5x.runs.files import read_json, write_json

_COMPARISON = 'comparison.json'
# Files to copy from the folder of a study or a comparison.
_SUFFIXES = {'.json', '.txt', '.md', '.png'}
# The table has their figures, or they belong to single runs.
_OMITTED = {'learning_curves.png', 'report.html', 'cell.json'}


def reduced(comparison: dict[str, Any]) -> dict[str, Any]:
  """Returns the figures of a comparison without curves and run records.

  Args:
    comparison: see `figures.compare_cells`.
  """
  figures = {k: v for k, v in comparison.items() if k != 'curves'}
  figures['cells'] = [_provenance(cell) for cell in comparison['cells']]
  return figures


def keep(
  source: pathlib.Path, target: pathlib.Path, *, below: bool = True
) -> None:
  """Copies the files of a study or of one comparison into a folder.

  Args:
    source: the folder of the study.
    target: created if missing. Files of the same names are replaced.
    below: whether to copy the comparisons in subfolders too.

  Raises:
    UserError: the source is no such folder.
  """
  if not source.is_dir():
    raise UserError(f'{source}: no such folder; expected that of a study')
  target.mkdir(parents=True, exist_ok=True)
  for path in sorted(source.iterdir()):
    if path.name == _COMPARISON:
      figures = reduced(read_json(path))
      write_json(target / _COMPARISON, figures)
    elif path.is_file() and path.suffix in _SUFFIXES:
      if path.name not in _OMITTED:
        shutil.copyfile(path, target / path.name)
    elif below and (path / _COMPARISON).exists():
      keep(path, target / path.name, below=False)


def _provenance(cell: dict[str, Any]) -> dict[str, Any]:
  """Returns the origin of a cell's figures."""
  run = cell.get('run') or {}
  device = run.get('device') or {}
  return {
    **{key: cell[key] for key in ('name', 'variant', 'seed', 'command')},
    'fingerprints': cell.get('fingerprints'),
    'engine': run.get('engine'),
    'git': run.get('git'),
    'device': device.get('kind'),
    'packages': {
      name: version
      for name, version in (run.get('packages') or {}).items()
      if name in ('jax', 'flax', 'optax', 't5x')
    },
  }


def main(argv: Sequence[str]) -> None:
  """Runs the command."""
  if len(argv) != 2 or any(arg.startswith('-') for arg in argv):
    if {'--help', '-h'} & set(argv):
      print(__doc__)
      return
    raise UserError('expected two folders: that of the study and the target')
  keep(*map(pathlib.Path, argv))


if __name__ == '__main__':
  exits.run_main(main)
