"""Writes the API reference as HTML pages from the docstrings, with pdoc.

  python -m tools.api_pages build/api

Every module of the suite has a page, and the engine under T5X's names. A
module that an optional package would be needed for is named and has none.
"""

import importlib
import importlib.util
import pathlib
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator, Sequence

import pdoc

import selective_t5x
from selective_t5x.cli import exits
from selective_t5x.errors import UserError

# Modules that import what only an environment of their own has.
OPTIONAL = {'selective_t5x.lm_eval.adapter': 'lm_eval'}


def modules() -> Iterator[str]:
  """Yields pdoc's patterns for modules with and without a page.

  pdoc alone would leave out the modules of a package that defines __all__.
  """
  for package in ('selective_t5x', 't5x'):
    yield package
    paths = importlib.import_module(package).__path__
    for module in pkgutil.walk_packages(paths, f'{package}.'):
      yield module.name
  # They are the modules of t5x and must not be imported by another name.
  yield r'!selective_t5x\.engine(\..*)?$'
  for module, package in OPTIONAL.items():
    if importlib.util.find_spec(package) is None:
      print(
        f'no page for {module}: {package} is not installed here',
        file=sys.stderr,
      )
      yield f'!{re.escape(module)}$'


def main(argv: Sequence[str]) -> None:
  """Writes the pages into a folder."""
  if len(argv) != 1 or argv[0].startswith('-'):
    raise UserError('expected one folder: python -m tools.api_pages FOLDER')
  assert selective_t5x.engine_name()  # Makes t5x importable.
  warnings.simplefilter('ignore')  # pdoc shows unevaluable values as text
  pdoc.render.configure(docformat='google')
  pdoc.pdoc(*modules(), output_directory=pathlib.Path(argv[0]))


if __name__ == '__main__':
  exits.run_main(main)
