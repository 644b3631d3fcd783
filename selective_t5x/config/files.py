"""Finds gin files, also those of an installed wheel."""

import glob
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence

from selective_t5x.config import t5x_files
from selective_t5x.errors import UserError, did_you_mean

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# The gin files that a run writes into its folder.
_SAVED = re.compile(r'(operative_config|config(_until_\d+)?)\.gin')


def search_path() -> pathlib.Path:
  """Returns the folder that holds gin/, in a wheel or in a checkout."""
  installed = _PACKAGE / 'configs'
  return installed if (installed / 'gin').is_dir() else _PACKAGE.parent


def t5x_search_path() -> pathlib.Path:
  """Returns the folder that holds t5x/: T5X's gin files, written here."""
  return _PACKAGE / 't5x_package'


def search_paths(engine: str) -> list[str]:
  """Returns the folders of the suite's gin files.

  Args:
    engine: 'embedded' or 't5x', which has its own gin files.
  """
  ours = [str(search_path())]
  return [*ours, str(t5x_search_path())] if engine == 'embedded' else ours


def gin_dir() -> pathlib.Path:
  """Returns the gin/ folder itself."""
  return search_path() / 'gin'


def part_of_suite(path: str) -> str | None:
  """Returns a file's path below gin/; None if the suite does not ship it."""
  file, folder = pathlib.Path(path).resolve(), gin_dir().resolve()
  return str(file.relative_to(folder)) if folder in file.parents else None


def is_saved(path: str) -> bool:
  """Whether a gin file has a name that runs give to their files."""
  return bool(_SAVED.fullmatch(pathlib.Path(path).name))


def find(name: str, search_paths: Sequence[str], source: str = '') -> str:
  """Returns the path of a gin file.

  Args:
    name: the path in a flag or in an include.
    search_paths: folders to search in order.
    source: the flag or the include, for the error message.

  Raises:
    UserError: there is no such file. The message has the nearest names.
  """
  # sys.path leads to the gin files of installed packages such as T5X.
  for folder in ('', *search_paths, *sys.path):
    path = os.path.join(folder, name)
    if os.path.isfile(path):
      return path
  looked = dict.fromkeys(os.path.abspath(f) for f in ('', *search_paths))
  instead = t5x_files.replacement(name)
  raise UserError(
    f'{source}: no such file (looked in {", ".join(looked)})'
    f'{instead or did_you_mean(name, _gin_files(name, search_paths))}'
  )


def _gin_files(name, search_paths) -> Iterator[str]:
  """Yields the gin files in the folder of a missing one, and the suite's."""
  for folder in ('', *search_paths):
    beside = os.path.dirname(os.path.join(folder, name))
    # pathlib's glob raises for a name that cannot exist; this one does not.
    for path in glob.glob(os.path.join(glob.escape(beside), '*.gin')):
      yield str(pathlib.Path(name).with_name(os.path.basename(path)))
  root = search_path()
  for file in gin_dir().rglob('*.gin'):
    yield str(file.relative_to(root))
