"""One process at a time in the folder of a run or of a search.

The lock is flock's: it ends with the process that holds it, however that ends,
so a run that was killed can be started again at once.
"""

import contextlib
import datetime
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import IO

from absl import logging

from selective_t5x.errors import UserError

LOCK_FILE = '.lock'


@contextlib.contextmanager
def held(folder: str | os.PathLike) -> Iterator[None]:
  """Holds the lock of a folder inside the context.

  The folder is made where it is missing, and taken back if the run in this
  context refuses what it was given and has left nothing there.

  Args:
    folder: a local folder; one with '://' in it is not locked.

  Raises:
    UserError: another process holds it, or the folder cannot be written.
  """
  if '://' in str(folder):
    yield
    return
  path = pathlib.Path(folder) / LOCK_FILE
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _take(path)
  except OSError as error:
    raise UserError(f'{folder}: cannot write there: {error}') from error
  with file:
    try:
      yield
    except UserError:
      path.unlink(missing_ok=True)
      if not any(path.parent.iterdir()):
        path.parent.rmdir()
      raise
    finally:
      path.unlink(missing_ok=True)


def _take(path: pathlib.Path) -> IO[str]:
  """Returns the open lock file, once this process holds it."""
  while True:
    file = open(path, 'a+')
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      holder = file.read().strip() or 'another process'
      file.close()
      raise UserError(
        f'{path.parent}: {holder} is at work there; wait for it, end it, or '
        'give another folder'
      ) from None
    except OSError as error:  # A file system without locks.
      logging.warning('%s: cannot be locked: %s', path, error)
    # Who held it before may have removed the file in between.
    if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
      break
    file.close()
  file.truncate(0)
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
  file.write(f'process {os.getpid()} on {socket.gethostname()} (since {now})')
  file.flush()
  return file
