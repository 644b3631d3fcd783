"""DATA_DIR: one folder for all data sets in files.

It contains a folder for each set, as its makers distribute it:

    <DATA_DIR>/hellaswag/hellaswag_val.jsonl
    <DATA_DIR>/wikitext-103/wiki.train.tokens

The gin binding `data_dir.root.path` names it (DATA_DIR in the gin files that
use it), else the environment variable DATA_DIR.
"""

import os
import pathlib

import gin

from selective_t5x.errors import UserError, did_you_mean


@gin.configurable(module='selective_t5x.tasks.data_dir')
def root(path: str | None = None) -> pathlib.Path | None:
  """Returns the folder of all data sets, or None if it is not set.

  Args:
    path: the folder; None: the environment variable DATA_DIR.

  Raises:
    UserError: the folder does not exist.
  """
  if path is not None and not isinstance(path, str):
    raise UserError(f'data_dir.root.path = {path!r}: expected text')
  name = path or os.environ.get('DATA_DIR')
  if not name:
    return None
  folder = pathlib.Path(name).expanduser().absolute()
  if not folder.is_dir():
    raise UserError(f'DATA_DIR: there is no folder {folder}')
  return folder


def folder(name: str) -> pathlib.Path | None:
  """Returns <DATA_DIR>/name, or None if it is not there."""
  data_dir = root()
  if data_dir is None or not (data_dir / name).is_dir():
    return None
  return data_dir / name


def find(folder: pathlib.Path, *names: str) -> pathlib.Path:
  """Returns the only file with one of the names; see `find_any`.

  Raises:
    UserError: there is no such file, or more than one.
  """
  path = find_any(folder, *names)
  if path is None:
    file_names = [path.name for path in folder.rglob('*') if path.is_file()]
    raise UserError(
      f'{folder}: no file {" or ".join(names)} in it'
      f'{did_you_mean(names[0], file_names)}'
    )
  return path


def find_any(folder: pathlib.Path, *names: str) -> pathlib.Path | None:
  """Returns the only file with one of the names, at any depth, or None.

  The official archives unpack to folders of their own, so the depth varies.

  Args:
    folder: the folder to search.
    *names: file names, the preferred first.

  Raises:
    UserError: several files have the same name.
  """
  for name in names:
    matches = sorted(folder.rglob(name))
    if len(matches) > 1:
      raise UserError(f'{matches[0]} and {matches[1]}: expected one {name}')
    if matches:
      return matches[0]
  return None
