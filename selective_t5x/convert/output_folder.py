"""A result folder that appears when it is complete."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from selective_t5x.errors import UserError


def check(path: pathlib.Path) -> None:
  """Checks that a folder can be made.

  Raises:
    UserError: there is something of this name.
  """
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise UserError(
      f'--output_dir={path}: expected a new folder, or an empty one'
    )


@contextlib.contextmanager
def complete(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary folder that gets the name in the end.

  If the context is left by an exception, nothing remains.

  Raises:
    UserError: see `check`; or the folder cannot be written.
  """
  check(path)
  temporary = path.parent / f'.{path.name}.{os.getpid()}.tmp'
  try:
    temporary.mkdir(parents=True)
  except OSError as error:
    raise UserError(f'{path}: cannot write there: {error}') from error
  try:
    yield temporary
    if path.is_dir():
      path.rmdir()
    temporary.rename(path)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
