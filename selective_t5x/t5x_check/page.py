"""Writes the table of docs/t5x_migration.md from a checkout of T5X.

  python -m selective_t5x.t5x_check.page T5X docs/t5x_migration.md

T5X is the folder t5x of the checkout. Nothing of it is imported.
"""

import collections
import pathlib
from collections.abc import Sequence

from selective_t5x.cli import exits
from selective_t5x.errors import UserError
from selective_t5x.t5x_check import check, comparison, migration
from selective_t5x.t5x_check.comparison import Comparison
from selective_t5x.t5x_check.definitions import Library

START, END = '<!-- table -->\n\n', '\n<!-- end of the table -->'
_MOST_NAMES = 12
_NOT_YET = 'not written yet'
_BORROWED = "another library's name"


def with_table(text: str, t5x: pathlib.Path) -> str:
  """Returns the text of the page with a new table.

  Args:
    text: the page.
    t5x: the folder of the package t5x.

  Raises:
    UserError: the folder is not T5X's, or the page has no place for the table.
  """
  if not (t5x / 'trainer.py').exists():
    raise UserError(f'{t5x}: expected the folder t5x of a checkout of T5X')
  if text.count(START) != 1 or text.count(END) != 1:
    raise UserError(f'the page has no {START.strip()} and {END.strip()}')
  before, rest = text.split(START)
  comparisons = comparison.compare(Library({'t5x': [t5x]}), check.engine())
  return before + START + _table(comparisons) + END + rest.split(END)[1]


def _table(comparisons: Sequence[Comparison]) -> str:
  names = sum(len(c.names) for c in comparisons)
  missing = sum(len(c.missing) for c in comparisons)
  rows = [
    '| module of T5X | public names | here | missing | why |',
    '|---|---|---|---|---|',
    *map(_row, comparisons),
    f'| all | {names} | {names - missing} | | |',
  ]
  return '\n'.join(rows) + '\n'


def _row(one: Comparison) -> str:
  """Returns the row of a module."""
  if len(one.missing) == len(one.names):
    listed = ['all']
  else:
    listed = [f'`{n.removeprefix(one.module)[1:]}`' for n in one.roots]
  if len(listed) > _MOST_NAMES:
    count = len(listed) - _MOST_NAMES
    listed = [*listed[:_MOST_NAMES], f'{count} more']
  reasons = collections.Counter(
    migration.reason(name) or (_BORROWED if name in one.borrowed else _NOT_YET)
    for name in one.roots
  )
  several = len(reasons) > 1
  why = '; '.join(
    f'{reason} ({count})' if several else reason
    for reason, count in reasons.most_common()
  )
  here = len(one.names) - len(one.missing)
  cells = (f'`{one.module}`', len(one.names), here, ', '.join(listed), why)
  return f'| {" | ".join(map(str, cells))} |'


def main(argv: Sequence[str]) -> None:
  """Runs the command."""
  if len(argv) != 2:
    raise UserError('expected the folder t5x of a checkout of T5X and the page')
  t5x, file = map(pathlib.Path, argv)
  text = with_table(file.read_text('utf-8'), t5x)
  file.write_text(text, encoding='utf-8')


if __name__ == '__main__':
  exits.run_main(main)
