"""Where the suite's gin files are, in a checkout and in an installed wheel."""

import pathlib

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]


def search_path() -> pathlib.Path:
  """Returns the folder that holds gin/: a wheel's own, else the checkout's."""
  installed = _PACKAGE / 'configs'
  return installed if (installed / 'gin').is_dir() else _PACKAGE.parent


def gin_dir() -> pathlib.Path:
  """Returns the gin/ folder itself."""
  return search_path() / 'gin'
