"""A clock for work that JAX dispatches ahead of its computation."""

import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import jax


class AsyncTimer:
  """Measures durations between the moments at which arrays are computed.

  One thread waits for the arrays, in the order of the calls, so that the caller
  goes on. A start waits for the stop before it: steps are dispatched ahead, and
  the device begins a window of them when it has finished the previous one.
  """

  def __init__(self, clock: Callable[[], float] = time.time):
    """Takes a function that returns the time in seconds."""
    self._clock = clock
    self._pool = futures.ThreadPoolExecutor(1, thread_name_prefix='timer')
    self._start_future = None

  def start(self, block_on: Any = (), *, elapsed: float = 0.0) -> None:
    """Starts the clock once the arrays `block_on` are computed.

    Args:
      block_on: a tree of arrays. One that was donated counts as computed.
      elapsed: seconds to add to the duration.
    """
    self._start_future = self._pool.submit(
      lambda: self._when_ready(block_on) - elapsed
    )

  def stop(self, block_on: Any = ()) -> futures.Future:
    """Stops the clock once the arrays `block_on` are computed.

    Returns:
      a future of the duration in seconds.

    Raises:
      ValueError: the clock was not started.
    """
    start, self._start_future = self._started(), None
    return self._pool.submit(
      lambda: self._when_ready(block_on) - start.result()
    )

  def duration(self) -> float:
    """Returns the seconds since the start; the clock goes on.

    Raises:
      ValueError: the clock was not started.
    """
    start = self._started().result()
    return self._clock() - start

  def close(self) -> None:
    """Waits for the durations and stops the thread."""
    self._pool.shutdown(wait=True)

  def _started(self) -> futures.Future:
    if self._start_future is None:
      raise ValueError("The timer hasn't been started.")
    return self._start_future

  def _when_ready(self, block_on: Any) -> float:
    """Returns the time at which all arrays are computed."""
    for array in jax.tree.leaves(block_on):
      try:
        jax.block_until_ready(array)
      except RuntimeError:
        if not (isinstance(array, jax.Array) and array.is_deleted()):
          raise
    return self._clock()
