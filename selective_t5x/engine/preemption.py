"""SIGTERM, the notice before a machine is taken away."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from selective_t5x.errors import Interrupted

# SIGTERM lets an evaluation finish, unless it waits this long for one batch.
LONG_WAIT_SECONDS = 20.0


class PreemptionError(Interrupted):
  """Training has to stop; a trainer raises it, and the run saves its state."""


class Notice:
  """Tells whether SIGTERM has come; called with the next step."""

  def __init__(self, reached: Callable[[int], bool], came: Callable[[], bool]):
    """Stores the functions that answer.

    Args:
      reached: tells whether to stop before the next step, its argument.
      came: tells whether this process received the signal, if it can know.
    """
    self._reached = reached
    self._came = came

  def __call__(self, step: int) -> bool:
    """Returns whether to stop before a step."""
    return self._reached(step)

  def ends_wait(self, seconds: float) -> bool:
    """Returns whether to stop waiting for a training batch."""
    del seconds
    return self._came()

  def ends_long_wait(self, seconds: float) -> bool:
    """Returns whether to stop waiting for a batch of an evaluation."""
    return seconds > LONG_WAIT_SECONDS and self._came()


@contextlib.contextmanager
def noticed() -> Iterator[Notice]:
  """Catches SIGTERM inside the context.

  Yields:
    a function of the next step that tells whether to stop before it. Each of
    several processes must call it before every step, and all get the same
    answer: JAX's coordination service agrees on a step that none has passed.
  """
  if jax.process_count() > 1:
    yield Notice(multihost_utils.reached_preemption_sync_point, lambda: False)
    return
  if threading.current_thread() is not threading.main_thread():
    yield Notice(lambda step: False, lambda: False)
    return
  signalled = threading.Event()
  previous = signal.signal(signal.SIGTERM, lambda *_: signalled.set())
  try:
    yield Notice(lambda step: signalled.is_set(), signalled.is_set)
  finally:
    signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)
