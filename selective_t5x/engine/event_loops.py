"""Event loops that wait for their tasks before they close.

Orbax writes the arrays of a checkpoint as tasks of one loop. If one fails, on a
full disk for instance, the loop is closed at once while TensorStore's threads
still write the others. Each of these then prints a traceback, "Event loop is
closed", which no handler catches.
"""

import asyncio
import contextlib
from collections.abc import Iterator

_LONGEST_SECONDS = 60


class _PatientLoop(asyncio.SelectorEventLoop):
  def close(self) -> None:
    if not self.is_closed() and not self.is_running():
      if tasks := asyncio.all_tasks(self):
        waiting = asyncio.wait(tasks, timeout=_LONGEST_SECONDS)
        ended, _ = self.run_until_complete(waiting)
        for task in ended:
          task.cancelled() or task.exception()  # Only the first was raised.
    super().close()


class _Policy(asyncio.DefaultEventLoopPolicy):
  def new_event_loop(self) -> asyncio.AbstractEventLoop:
    return _PatientLoop()


@contextlib.contextmanager
def patient() -> Iterator[None]:
  """Makes new event loops, of any thread, patient inside the context."""
  previous = asyncio.get_event_loop_policy()
  asyncio.set_event_loop_policy(_Policy())
  try:
    yield
  finally:
    asyncio.set_event_loop_policy(previous)
