"""Where the suite's gin files are, in a checkout and in an installed wheel."""

import pathlib
import re

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
