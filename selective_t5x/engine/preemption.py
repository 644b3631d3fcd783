"""SIGTERM, the notice before a machine is taken away."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def noticed() -> Iterator[Callable[[int], bool]]:
  """Turns SIGTERM into an answer, inside the context.

  Yields:
    a function of the step that is next: whether to stop before it. Several
    processes, of which each must ask before every step, get the same answer:
    JAX's coordination service agrees on a step that none has passed.
  """
  if jax.process_count() > 1:
    yield multihost_utils.reached_preemption_sync_point
    return
  if threading.current_thread() is not threading.main_thread():
    yield lambda step: False
    return
  asked = threading.Event()
  before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
  try:
    yield lambda step: asked.is_set()
  finally:
    signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
