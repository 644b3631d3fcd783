"""One process at a time in the folder of a run or of a search.

The lock is flock's: it ends with the process that holds it, however that ends,
so a run that was killed can be started again at once.
"""

import contextlib
import datetime
import os
import pathlib
import socket
from collections.abc import Iterator

import filelock

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
      f'{path.parent}: {holder} is at work there; wait for it, end it, or '
      'give another folder'
    ) from None
  except OSError as error:
    raise UserError(f'{folder}: cannot write there: {error}') from error
  try:
    yield
  except UserError:
    path.unlink(missing_ok=True)
    if not any(path.parent.iterdir()):
      path.parent.rmdir()
    raise
  finally:
    # filelock lets nobody hold a file that is no longer at its path.
    path.unlink(missing_ok=True)
    lock.release()
