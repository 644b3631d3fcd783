r"""Lists what a T5X repository uses that the embedded engine does not have.

  python -m selective_t5x.t5x_check PATH [PATH ...]

Each PATH is a folder, or a .py or .gin file. Nothing is imported or run: Python
files are read by their syntax trees and gin files by gin's parser. A line names
the place, what is missing, and the nearest valid name or the reason; the last
line is a summary.

Exit codes: 0 all is there; 1 something is missing; 2 a file cannot be read.
"""

import sys
from collections.abc import Sequence

from selective_t5x.cli import exits
from selective_t5x.errors import UserError
from selective_t5x.t5x_check import check


def main(argv: Sequence[str]) -> None:
  """Runs `python -m selective_t5x.t5x_check`."""
  if {'--help', '-h'} & set(argv):
    print(__doc__)
    return
  flags = [argument for argument in argv if argument.startswith('-')]
  if flags or not argv:
    raise UserError(
      f'{flags[0]}: no such flag' if flags else 'expected a file or a folder'
    )
  engine = check.engine()
  files = [file for path in argv for file in check.source_files(path)]
  uses, unreadable = [], []
  for file in files:
    try:
      uses += check.uses(file, engine)
    except UserError as error:
      unreadable.append(str(error))
  problems = list(check.problems(uses, engine))
  for problem in problems:
    print(f'{problem.use.file}:{problem.use.line}: {problem.text}')
  missing = {problem.name for problem in problems}
  names = {use.name for use in uses}
  print(
    f'Files read: {len(files)}. Names of T5X used: {len(names)}. Missing in '
    f'the embedded engine: {len(missing)}, at {len(problems)} of {len(uses)} '
    'places.'
  )
  if unreadable:
    raise UserError('; '.join(unreadable))
  if problems:
    sys.exit(1)


if __name__ == '__main__':
  exits.run_main(main)
