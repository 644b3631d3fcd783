"""Lets only one process at a time work in the folder of a run or search.

The lock is flock's and ends with its process, so a killed run can be started
again at once.
"""

import contextlib
import datetime
import os
import pathlib
import socket
from collections.abc import Iterator

import filelock

from selective_t5x.errors import UserError, is_remote

LOCK_FILE = '.lock'


@contextlib.contextmanager
def held(folder: str | os.PathLike) -> Iterator[None]:
  """Holds the lock of a folder inside the context.

  A missing folder is created. If the context raises UserError and the folder is
  empty, it is removed.

  Args:
    folder: a local folder. A remote one is not locked.

  Raises:
    UserError: another process holds it, or the folder cannot be written.
  """
  if is_remote(folder):
    yield
    return
  path = pathlib.Path(folder) / LOCK_FILE
  lock = filelock.FileLock(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock.acquire(blocking=False)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    path.write_text(
      f'process {os.getpid()} on {socket.gethostname()} (since {now})'
    )
  except filelock.Timeout:
    holder = path.read_text().strip() or 'another process'
    raise UserError(
      f'{path.parent}: {holder} is using the folder; wait for it, end it, or '
      'give another folder'
    ) from None
  except OSError as error:
    raise UserError(f'{folder}: cannot write to it: {error}') from error
  try:
    yield
  except UserError:
    path.unlink(missing_ok=True)
    if not any(path.parent.iterdir()):
      path.parent.rmdir()
    raise
  finally:
    # filelock grants no lock on a file that is no longer at its path.
    path.unlink(missing_ok=True)
    lock.release()
