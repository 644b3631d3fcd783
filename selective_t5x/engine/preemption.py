"""SIGTERM, the notice before a machine is taken away."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

# For one batch of an evaluation, which SIGTERM lets end.
LONG_WAIT_SECONDS = 20.0


class Notice:
  """Whether SIGTERM has come; called with the step that is next."""

  def __init__(self, reached: Callable[[int], bool], came: Callable[[], bool]):
    """Takes what answers.

    Args:
      reached: of the step that is next, whether to stop before it.
      came: whether this process was told, as far as it can know.
    """
    self._reached = reached
    self._came = came

  def __call__(self, step: int) -> bool:
    """Returns whether to stop before a step."""
    return self._reached(step)

  def ends_wait(self, seconds: float) -> bool:
    """Returns whether to wait no longer for a batch to train on."""
    del seconds
    return self._came()

  def ends_long_wait(self, seconds: float) -> bool:
    """Returns whether to wait no longer for what should be finished first."""
    return seconds > LONG_WAIT_SECONDS and self._came()


@contextlib.contextmanager
def noticed() -> Iterator[Notice]:
  """Turns SIGTERM into an answer, inside the context.

  Yields:
    a function of the step that is next: whether to stop before it. Several
    processes, of which each must ask before every step, get the same answer:
    JAX's coordination service agrees on a step that none has passed.
  """
  if jax.process_count() > 1:
    yield Notice(multihost_utils.reached_preemption_sync_point, lambda: False)
    return
  if threading.current_thread() is not threading.main_thread():
    yield Notice(lambda step: False, lambda: False)
    return
  asked = threading.Event()
  before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
  try:
    yield Notice(lambda step: asked.is_set(), asked.is_set)
  finally:
    signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
