"""Reads a tf.data pipeline in a thread, so that a signal can end the wait.

A pipeline that filters everything out of an endless data set never returns from
TensorFlow, and Python handles no signal before it does. So a thread requests
the element, the caller waits for the thread, and the request can be cancelled.
"""

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

# Only this module of TensorFlow can cancel the call of a function.
from tensorflow.python.eager import cancellation

from selective_t5x.errors import RunError

# The name of the thread that waits for TensorFlow.
THREAD = 'reads_data'
_POLL_SECONDS = 0.2
_CANCEL_SECONDS = 30


class Stopped(Exception):
  """The caller no longer waits for the requested element."""


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
  """Turns errors while data is read into one line.

  Raises:
    RunError: a file is missing or broken, or there is no data.
  """
  try:
    yield
  except tf.errors.OpError as error:
    # The traceback of a Python function in the pipeline ends in its error.
    reasons = re.findall(r'\w+Error: .*', error.message) or [error.message]
    reason = f'{type(error).__name__}: {reasons[-1]}'.splitlines()[0]
    raise RunError(f'{what} cannot be read: {reason}') from error
  except StopIteration:
    # With a cause, contextlib would take it for Python's own RuntimeError.
    raise RunError(f'{what} gives no batch, or no more') from None


def next_or_none(iterator: Iterator[Any]) -> Any:
  """Returns the next element, or None if the wait for it was ended."""
  try:
    return next(iterator)
  except Stopped:
    return None


def never(*_) -> bool:
  """Returns False: the caller waits without limit."""
  return False


class InterruptibleIterator:
  """The elements of a tf.data.Dataset, as NumPy arrays.

  A signal handler that raises, Ctrl-C or `stopped` ends the wait for an element
  and cancels the pipeline; the iterator cannot be used afterwards.

  Attributes:
    iterator: TensorFlow's own iterator, whose state can be read and written
      between two elements.
  """

  def __init__(
    self, dataset: tf.data.Dataset, stopped: Callable[[float], bool] = never
  ):
    """Starts at the first element.

    Args:
      dataset: its elements are dictionaries of tensors, or tensors.
      stopped: called several times a second during the wait for an element,
        with the seconds since the request; if it returns True, the wait ends
        with `Stopped`.
    """
    self.iterator = iter(dataset)
    self._stopped = stopped
    self._ended = False
    self._cancellation = cancellation.CancellationManager()
    self._get_next = tf.function(
      lambda iterator: iterator.get_next(), autograph=False
    )

  def __iter__(self) -> 'InterruptibleIterator':
    return self

  def __next__(self) -> Any:
    """Returns the next element.

    Raises:
      StopIteration: there is no further element.
      Stopped: `stopped` returned True during the wait.
    """
    return tf.nest.map_structure(to_numpy, self.next_tensors())

  def next_tensors(
    self, patience: float | None = None, out_of_patience: Callable = never
  ) -> Any:
    """Returns the next element as TensorFlow's tensors.

    Args:
      patience: seconds after which `out_of_patience` is called, once; None:
        never.
      out_of_patience: called during the wait; an exception from it ends the
        wait.

    Raises:
      StopIteration: there is no further element.
      Stopped: `stopped` returned True during the wait.
    """
    if self._ended:  # TensorFlow would report a further request as cancelled.
      raise StopIteration
    started = time.monotonic()
    request = _Request(self._get_next, self.iterator, self._cancellation)
    try:
      while not request.done.wait(_POLL_SECONDS):
        seconds = time.monotonic() - started
        if self._stopped(seconds):
          raise Stopped
        if patience is not None and seconds > patience:
          patience = None
          out_of_patience()
    except BaseException:
      self._cancellation.start_cancel()
      request.done.wait(_CANCEL_SECONDS)
      raise
    try:
      return request.result()
    except StopIteration:
      self._ended = True
      raise


def to_numpy(tensor: tf.Tensor) -> np.ndarray | bytes:
  """Returns an array that shares a tensor's memory; bytes for one string."""
  if tensor.dtype == tf.string:
    return tensor.numpy()
  return np.asarray(tensor)


class _Request:
  """A call of TensorFlow in a thread of its own."""

  def __init__(self, function, argument, manager):
    self.done = threading.Event()
    self._value, self._error = None, None

    def call():
      try:
        with cancellation.CancellationManagerContext(manager):
          self._value = function(argument)
      except BaseException as error:
        self._error = error
      finally:
        self.done.set()

    # A daemon, since an exit must not wait for an uncancellable call.
    threading.Thread(target=call, daemon=True, name=THREAD).start()

  def result(self):
    if isinstance(self._error, tf.errors.OutOfRangeError):
      raise StopIteration
    if self._error is not None:
      raise self._error
    return self._value
