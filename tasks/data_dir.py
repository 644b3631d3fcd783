"""DATA_DIR: one folder for all data sets that one has as files.

It holds a folder for each set, as its makers hand it out:

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
  """Returns the folder of all data sets, or None where none is named.

  Args:
    path: the folder; None asks the environment variable DATA_DIR.

  Raises:
    UserError: it is named and not there.
  """
  if path is not None and not isinstance(path, str):
    raise UserError(f'data_dir.root.path = {path!r}: expected text')
  named = path or os.environ.get('DATA_DIR')
  if not named:
    return None
  folder = pathlib.Path(named).expanduser().absolute()
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
  """Returns the one file that has one of the names; see `find_any`.

  Raises:
    UserError: there is none, or more than one.
  """
  path = find_any(folder, *names)
  if path is None:
    there = [path.name for path in folder.rglob('*') if path.is_file()]
    raise UserError(
      f'{folder}: no file {" or ".join(names)} in it'
      f'{did_you_mean(names[0], there)}'
    )
  return path


def find_any(folder: pathlib.Path, *names: str) -> pathlib.Path | None:
  """Returns the one file that has one of the names, at any depth, or None.

  The official archives unpack to folders of their own, so that depth varies.

  Args:
    folder: where to look.
    *names: file names, the preferred first.

  Raises:
    UserError: there is more than one of a name.
  """
  for name in names:
    found = sorted(folder.rglob(name))
    if len(found) > 1:
      raise UserError(f'{found[0]} and {found[1]}: expected one {name}')
    if found:
      return found[0]
  return None
