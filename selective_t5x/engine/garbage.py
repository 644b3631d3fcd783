"""Python's garbage collection at regular steps, in place of at any time.

A collection stops the process that it happens in; on a pod the others wait.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def collected_every(period: int) -> Iterator[Callable[[int], None]]:
  """Ends automatic collections; the block calls the function now and then.

  Args:
    period: steps between collections; 0: the collections stay automatic.

  Yields:
    a function of the step, which collects if the period is over.
  """
  if not period:
    yield lambda step: None
    return
  gc.disable()
  try:
    yield lambda step: None if step % period else gc.collect()
  finally:
    gc.enable()
