"""The cache folder: converted files and vocabularies, made once.

It is $SELECTIVE_T5X_CACHE, else ~/.cache/selective_t5x. Each entry is named by
a hash of its inputs, appears whole or not at all, and is made by one process
while others wait. Deleting the folder costs only time.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator

import filelock
from absl import logging

from selective_t5x.errors import UserError

# Raised when the format of entries changes, so that older ones are not read.
_LAYOUT = 2


def root() -> pathlib.Path:
  """Returns the cache folder; it may not exist yet."""
  folder = os.environ.get('SELECTIVE_T5X_CACHE') or '~/.cache/selective_t5x'
  return pathlib.Path(folder).expanduser().absolute()


def fingerprint(paths: Iterable[pathlib.Path], **settings) -> str:
  """Returns a hash of the files' names, sizes and times, and of settings.

  Args:
    paths: files that exist. Their bytes are not read: a C4 shard is large.
    **settings: everything else that determines the result, in JSON types.
  """
  files = [
    (str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns)
    for path in paths
  ]
  return digest(json.dumps([_LAYOUT, files, settings], sort_keys=True))


def digest(text: str) -> str:
  """Returns a hash of a text, 16 hexadecimal digits."""
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def build(entry: str, write: Callable[[pathlib.Path], None]) -> pathlib.Path:
  """Returns the path of an entry, which is made now if it is missing.

  Args:
    entry: path within the cache folder; it contains a hash of the inputs.
    write: makes the entry, a file or a folder, at its argument, a path.

  Raises:
    UserError: if the cache folder cannot be written.
  """
  path = root() / entry
  if path.exists():
    return path
  with _locked(path):
    if not path.exists():  # another process may have made it meanwhile
      partial = path.with_name(f'{path.name}.partial')
      _remove(partial)  # left by a process that was killed
      logging.info('Making %s, once.', path)
      start = time.monotonic()
      try:
        write(partial)
      except BaseException:
        _remove(partial)
        raise
      partial.rename(path)
      logging.info('Made it in %.1f s.', time.monotonic() - start)
  return path


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
  """Holds the entry's lock, which the system frees if the process dies."""
  lock = filelock.FileLock(path.with_name(f'{path.name}.lock'))
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock.acquire(blocking=False)
  except filelock.Timeout:
    logging.info('Waiting for another process to make %s', path)
    lock.acquire()
  except OSError as error:
    raise UserError(
      f'cannot write the cache folder {root()}: {error.strerror}; set '
      'SELECTIVE_T5X_CACHE to another'
    ) from error
  try:
    yield
  finally:
    lock.release()


def _remove(path: pathlib.Path):
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
