"""Describes known failures of a run in one line instead of a traceback."""

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from selective_t5x import errors

# Maximum time from SIGTERM to the end of a process that saves nothing.
STOP_SECONDS = 20.0

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_SPACE_TEXTS = (
  'No space left on device',
  'Disk quota exceeded',
  'File too large',
)
# Part of the error of a collective on CPUs if another process has ended.
_NO_PEER = 'Gloo '


class _Stop(SystemExit):
  """The exception that SIGTERM raises."""


def stop_at_sigterm() -> None:
  """Ends this process at SIGTERM with the exit code INTERRUPTED.

  During training another handler saves first. If the signal comes inside code
  that swallows exceptions (JAX's callback of the garbage collector, or a
  finaliser), it is sent again a moment later. Python handles no signal while a
  library's code runs, and a thread of a library can delay the exit: another
  thread ends a process that has not ended after STOP_SECONDS.
  """
  previous = sys.unraisablehook

  def stop(*_):
    raise _Stop(errors.INTERRUPTED)

  def swallowed(what):
    if isinstance(what.exc_value, _Stop):
      again = (os.getpid(), signal.SIGTERM)
      threading.Timer(0.05, os.kill, again).start()
    else:
      previous(what)

  sys.unraisablehook = swallowed
  signal.signal(signal.SIGTERM, stop)
  signals, write_to = os.pipe()
  os.set_blocking(write_to, False)
  signal.set_wakeup_fd(write_to, warn_on_full_buffer=False)
  threading.Thread(target=_end_late, args=(signals, stop), daemon=True).start()


def _end_late(signals: int, stop: Callable) -> None:
  """Ends this process some time after SIGTERM, if `stop` is its handler.

  Args:
    signals: a file descriptor from which the signals' numbers are read.
    stop: the handler of SIGTERM that ends the process.
  """
  while numbers := os.read(signals, 64):
    if signal.SIGTERM in numbers and signal.getsignal(signal.SIGTERM) is stop:
      time.sleep(STOP_SECONDS)
      os._exit(errors.INTERRUPTED)


def one_line(error: BaseException) -> str:
  """Returns a line for a known failure, else '': a traceback is needed."""
  if isinstance(error, errors.UserError | errors.RunError):
    return message(error)
  for cause in _chain(error):
    text = str(cause)
    is_full = isinstance(cause, OSError) and cause.errno in _NO_SPACE
    if is_full or any(known in text for known in _NO_SPACE_TEXTS):
      file = getattr(cause, 'filename', None)
      known = [t for t in _NO_SPACE_TEXTS if t in text]
      what = known[0] if known else text
      return (
        f'the disk is full ({what}{f": {file}" if file else ""}); saved '
        'files are complete: make room, and the same command resumes the run'
      )
    if _NO_PEER in text:
      return (
        'another process of this run has ended, and its log says why '
        f'({text[text.index(_NO_PEER) :].splitlines()[0]}); the same command '
        'for all of them resumes from the last checkpoint'
      )
  return ''


def message(error: BaseException) -> str:
  """Returns an error's message on one line, without gin's stack of calls."""
  return ' '.join(str(error).split('\n  In call to configurable')[0].split())


def _chain(error: BaseException) -> Iterator[BaseException]:
  """Yields an error and its causes."""
  visited = set()
  while error is not None and id(error) not in visited:
    visited.add(id(error))
    yield error
    error = error.__cause__ or error.__context__
