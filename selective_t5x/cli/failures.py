"""What stopped a run, in one line where a traceback would tell less."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator

from selective_t5x import errors

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_SPACE_TEXTS = (
  'No space left on device',
  'Disk quota exceeded',
  'File too large',
)
# How a collective fails on CPUs where another process is gone.
_NO_PEER = 'Gloo '


class _Stop(SystemExit):
  """What SIGTERM raises."""


def stop_at_sigterm() -> None:
  """Ends this process at SIGTERM with the exit code INTERRUPTED.

  Training takes the signal over while it trains, to save first. Where it comes
  in the middle of what swallows exceptions, JAX's callback of the garbage
  collector or a finaliser, it is sent once more a moment later.
  """
  before = sys.unraisablehook

  def stop(*_):
    raise _Stop(errors.INTERRUPTED)

  def swallowed(what):
    if isinstance(what.exc_value, _Stop):
      again = (os.getpid(), signal.SIGTERM)
      threading.Timer(0.05, os.kill, again).start()
    else:
      before(what)

  sys.unraisablehook = swallowed
  signal.signal(signal.SIGTERM, stop)


def one_line(error: BaseException) -> str:
  """Returns what happened where that is known, '' where a traceback is due."""
  if isinstance(error, errors.UserError | errors.RunError):
    return message(error)
  for cause in _chain(error):
    text = str(cause)
    is_full = isinstance(cause, OSError) and cause.errno in _NO_SPACE
    if is_full or any(known in text for known in _NO_SPACE_TEXTS):
      named = getattr(cause, 'filename', None)
      known = [t for t in _NO_SPACE_TEXTS if t in text]
      what = known[0] if known else text
      return (
        f'the disk is full ({what}{f": {named}" if named else ""}); what was '
        'saved is whole: make room, and the same command goes on from there'
      )
    if _NO_PEER in text:
      return (
        'another process of this run has ended, and its log says why '
        f'({text[text.index(_NO_PEER) :].splitlines()[0]}); the same command, '
        'for all of them, goes on from the last checkpoint'
      )
  return ''


def message(error: BaseException) -> str:
  """Returns an error's message on one line, without gin's stack of calls."""
  return ' '.join(str(error).split('\n  In call to configurable')[0].split())


def _chain(error: BaseException) -> Iterator[BaseException]:
  """Yields an error and those that it came from."""
  seen = set()
  while error is not None and id(error) not in seen:
    seen.add(id(error))
    yield error
    error = error.__cause__ or error.__context__
