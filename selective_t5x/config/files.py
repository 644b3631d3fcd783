"""Where gin files are; the suite's, in a checkout and in an installed wheel."""

import glob
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence

from selective_t5x.config import t5x_files
from selective_t5x.errors import UserError, did_you_mean

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# What a run writes into its folder.
_SAVED = re.compile(r'(operative_config|config(_until_\d+)?)\.gin')


def search_path() -> pathlib.Path:
  """Returns the folder that holds gin/: a wheel's own, else the checkout's."""
  installed = _PACKAGE / 'configs'
  return installed if (installed / 'gin').is_dir() else _PACKAGE.parent


def gin_dir() -> pathlib.Path:
  """Returns the gin/ folder itself."""
  return search_path() / 'gin'


def part_of_suite(path: str) -> str | None:
  """Returns a gin file's path below gin/, None if it is not of the suite."""
  file, folder = pathlib.Path(path).resolve(), gin_dir().resolve()
  return str(file.relative_to(folder)) if folder in file.parents else None


def is_saved(path: str) -> bool:
  """Whether a gin file has the name of one that runs write."""
  return bool(_SAVED.fullmatch(pathlib.Path(path).name))


def find(name: str, search_paths: Sequence[str], asked: str = '') -> str:
  """Returns the path of a gin file.

  Args:
    name: as it was asked for.
    search_paths: folders to look in, the first that has the file wins.
    asked: what asks for it, for the error.

  Raises:
    UserError: there is none; the message has the nearest names.
  """
  # sys.path holds the gin files inside installed packages, T5X's for one.
  for folder in ('', *search_paths, *sys.path):
    path = os.path.join(folder, name)
    if os.path.isfile(path):
      return path
  looked = dict.fromkeys(os.path.abspath(f) for f in ('', *search_paths))
  instead = t5x_files.instead_of(name)
  raise UserError(
    f'{asked}: no such file (looked in {", ".join(looked)})'
    f'{instead or did_you_mean(name, _gin_files(name, search_paths))}'
  )


def _gin_files(name, search_paths) -> Iterator[str]:
  """Yields names of gin files beside the one asked for, and the suite's own."""
  for folder in ('', *search_paths):
    beside = os.path.dirname(os.path.join(folder, name))
    # Unlike pathlib's, this glob finds nothing where a name cannot be.
    for path in glob.glob(os.path.join(glob.escape(beside), '*.gin')):
      yield str(pathlib.Path(name).with_name(os.path.basename(path)))
  root = search_path()
  for file in gin_dir().rglob('*.gin'):
    yield str(file.relative_to(root))
