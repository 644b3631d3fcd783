"""Reads the arrays of a checkpoint by their names, whatever its layout."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from t5x.lazy_arrays import LazyThreadPoolArray


class SavedArray(LazyThreadPoolArray):
  """An array of a checkpoint, not read yet.

  Attributes:
    name: its path in the checkpoint joined by '/'.
  """

  def __init__(self, reader, name: str, shape, dtype):
    """Stores the description; `get` reads the whole array as NumPy's."""
    super().__init__(shape, dtype, lambda: reader.values([name])[name])
    self._reader, self.name = reader, name

  def astype(self, dtype: Any) -> 'SavedArray':
    """Returns the array converted to another dtype when it is read."""
    return SavedArray(self._reader, self.name, self.shape, dtype)


# {name in the checkpoint: (its sharding, its dtype or None: as saved)}
ReadRequests = Mapping[str, tuple[jax.sharding.Sharding, Any]]


class OrbaxReader:
  """Reads the arrays of a checkpoint in Orbax layout."""

  def __init__(self, path: str):
    self._path = os.path.join(path, 'state')
    self._handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True)

  def arrays(self) -> dict[str, SavedArray]:
    """Returns {name: array} of all arrays in the checkpoint."""
    with ocp.Checkpointer(self._handler) as checkpointer:
      metadata = checkpointer.metadata(self._path).item_metadata
    if metadata is None:
      raise ValueError(f'{self._path} has no metadata that can be read')
    flat = traverse_util.flatten_dict(dict(metadata.tree), sep='/')
    return {
      name: SavedArray(
        self, name, getattr(array, 'shape', None) or (), array.dtype
      )
      for name, array in flat.items()
      if hasattr(array, 'dtype')  # nodes without arrays are empty
    }

  def read(self, requests: ReadRequests) -> dict[str, jax.Array]:
    """Returns {name: array} of the requested arrays."""
    return self._read(
      {
        name: ocp.ArrayRestoreArgs(
          sharding=sharding, dtype=None if dtype is None else jnp.dtype(dtype)
        )
        for name, (sharding, dtype) in requests.items()
      }
    )

  def values(self, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Returns {name: whole array} of some arrays."""
    return self._read(
      {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    )

  def _read(self, restore_args: Mapping[str, ocp.RestoreArgs]):
    if not restore_args:
      return {}
    nested = traverse_util.unflatten_dict(restore_args, sep='/')
    with ocp.Checkpointer(self._handler) as checkpointer:
      tree = checkpointer.restore(
        self._path,
        args=ocp.args.PyTreeRestore(
          item=jax.tree.map(lambda _: 0, nested),
          restore_args=nested,
          partial_restore=True,
        ),
      )
    return traverse_util.flatten_dict(tree, sep='/')
