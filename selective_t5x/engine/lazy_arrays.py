"""Arrays whose shape and dtype are known, and whose values are read later."""

import abc
import asyncio
import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class LazyArray(abc.ABC):
  """An array whose values come from a function."""

  def __init__(
    self, shape: Sequence[int] | None, dtype: Any, get_fn: Callable[[], Any]
  ):
    """Stores what is known; the values are converted to the dtype."""
    self.shape = None if shape is None else tuple(shape)
    self.dtype = None if dtype is None else jnp.dtype(dtype)
    self._get_fn = get_fn

  @property
  def nbytes(self) -> int:
    """The size of the values in bytes."""
    return int(np.prod(self.shape)) * self.dtype.itemsize

  def astype(self, dtype: Any) -> 'LazyArray':
    """Returns a lazy array of another dtype."""
    return type(self)(self.shape, dtype, self._get_fn)

  def _converted(self, values: Any) -> Any:
    return values if self.dtype is None else values.astype(self.dtype)

  @abc.abstractmethod
  def get(self) -> Any:
    """Returns the values."""

  @abc.abstractmethod
  async def get_async(self) -> Any:
    """Returns the values, in a coroutine."""

  def __repr__(self) -> str:
    return f'{type(self).__name__}(shape={self.shape}, dtype={self.dtype})'


class LazyThreadPoolArray(LazyArray):
  """A lazy array whose function blocks; `get_async` calls it in a thread."""

  executor = concurrent.futures.ThreadPoolExecutor()

  def get(self) -> Any:
    """Returns the values."""
    return self._converted(self._get_fn())

  async def get_async(self) -> Any:
    """Returns the values, read in a thread."""
    return await asyncio.wrap_future(self.executor.submit(self.get))


def materialized(tree: Any) -> Any:
  """Returns a tree with the values of its lazy arrays."""
  return jax.tree.map(
    lambda leaf: leaf.get() if isinstance(leaf, LazyArray) else leaf, tree
  )
