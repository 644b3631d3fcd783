"""Iterators over global batches, from iterators of a repository's own."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from clu.data import dataset_iterator
from jax.sharding import NamedSharding

from t5x import data_reading


class ShardedDatasetIterator(dataset_iterator.DatasetIterator):
  """The batches of another iterator, as global arrays on the devices."""

  def __init__(
    self,
    iterator: dataset_iterator.DatasetIterator,
    partitioner,
    global_shapes: Mapping[str, tuple[int, ...]],
  ):
    """Stores the parts.

    Args:
      iterator: this process's rows of each batch, as NumPy arrays.
      partitioner: defines the mesh and the partitioning of a batch.
      global_shapes: {feature: shape of the global batch}.
    """
    self._iterator, self._global_shapes = iterator, global_shapes
    self._partitioner = partitioner

  @property
  def iterator(self) -> Any:
    """The iterator of the rows; TensorFlow's own, where it is one."""
    return getattr(self._iterator, 'iterator', self._iterator)

  def __next__(self):
    sharding = NamedSharding(
      self._partitioner.mesh, self._partitioner.data_partition_spec
    )
    return jax.tree.map(
      lambda rows, shape: jax.make_array_from_process_local_data(
        sharding, np.asarray(rows), tuple(shape)
      ),
      dict(next(self._iterator)),
      dict(self._global_shapes),
    )

  def reset(self) -> None:
    """Starts from the beginning."""
    self._iterator.reset()

  @property
  def element_spec(self):
    """Shapes and dtypes of this process's part of a batch."""
    return self._iterator.element_spec

  def save(self, filename) -> None:
    """Writes the position, in the iterator's own format."""
    self._iterator.save(filename)

  def restore(self, filename) -> None:
    """Goes to the position in a file."""
    self._iterator.restore(filename)


class OwnIterator(ShardedDatasetIterator):
  """The train iterator of a get_dataset_fn that returns clu's iterator.

  It saves its position in its own way, without a description of the data.

  Attributes:
    identity, seed, rebuild, explain, stopped: as in TrainIterator; unused.
  """

  identity: Callable[[], Mapping[str, str]] = dict
  seed: int | None = None
  rebuild: Callable[[], Any] | None = None
  explain: Callable[[], Any] = staticmethod(data_reading.never)
  stopped: Callable[[float], bool] = staticmethod(data_reading.never)

  def peek(self) -> None:
    """Returns at once: a batch that is read is past in what `save` writes."""

  def restore(self, filename, step: int | None = None) -> None:
    """Goes to the position in a file; the step is not needed."""
    del step
    super().restore(filename)
