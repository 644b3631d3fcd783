"""Reads T5X's older checkpoint layout, used by the published T5 checkpoints.

    checkpoint_1000000/checkpoint    msgpack: {'version': 3, 'optimizer':
                                     {'target': parameters, 'state': …}}
    checkpoint_1000000/target.encoder.…kernel/    a zarr array for each large
                                     one, whose TensorStore spec is in msgpack

This layout is never written.
"""

import os
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from etils import epath
from flax import serialization

from selective_t5x.errors import UserError
from t5x import checkpoint_readers, state_utils

FILE = 'checkpoint'


class LegacyReader:
  """Reads the arrays of a checkpoint in the older layout."""

  def __init__(self, path: str):
    """Reads the msgpack file.

    Raises:
      UserError: it is not msgpack, or T5X no longer supports its version.
    """
    self._path = path
    file = epath.Path(path) / FILE
    try:
      contents = serialization.msgpack_restore(file.read_bytes())
    except Exception as error:  # msgpack raises many types
      raise UserError(f'{file} is no T5X checkpoint: {error}') from error
    if 'optimizer' in contents:
      version = contents.get('version', 0)
      if version < 2:
        raise UserError(
          f'{file} has the version {version} of the checkpoint layout; '
          'expected 2 or 3'
        )
      contents = contents['optimizer']
    if 'target' not in contents:
      raise UserError(f'{file} is no T5X checkpoint: it has no "target"')
    self._leaves = state_utils.flatten_state_dict(contents)

  def arrays(self) -> dict[str, Any]:
    """Returns {name: array}; the values of the msgpack file are NumPy's."""
    return {
      name: checkpoint_readers.SavedArray(
        self, name, leaf['metadata']['shape'], leaf.get('dtype')
      )
      if isinstance(leaf, dict)
      else np.asarray(leaf)
      for name, leaf in self._leaves.items()
      if leaf is not None
    }

  def read(
    self, requests: checkpoint_readers.ReadRequests
  ) -> dict[str, jax.Array]:
    """Returns {name: array} of the requested arrays."""
    opened = self._open(requests)
    return {
      name: _read(opened[name], sharding, dtype)
      for name, (sharding, dtype) in requests.items()
    }

  def values(self, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Returns {name: whole array} of some arrays."""
    return {name: a.read().result() for name, a in self._open(names).items()}

  def _open(self, names: Iterable[str]) -> dict[str, ts.TensorStore]:
    # Opens all at once, since a remote file system is slow for each.
    opened = {n: ts.open(self._spec(n), open=True, read=True) for n in names}
    return {name: future.result() for name, future in opened.items()}

  def _spec(self, name: str) -> dict[str, Any]:
    """Returns the TensorStore spec of an array in this checkpoint's folder.

    The saved spec has the path within the folder and the file system that the
    checkpoint was written to, which may not be the present one.
    """
    saved = self._leaves[name]
    if saved['metadata'].get('dtype') == '<u2':
      raise UserError(
        f'{self._path}: {name} is saved as uint16, the bfloat16 of versions of '
        'T5X that are no longer supported'
      )
    relative = saved['kvstore'].get('path') or saved.get('path')
    path = os.path.join(self._path, relative)
    if path.startswith('gs://'):
      bucket, _, path = path.removeprefix('gs://').partition('/')
      kvstore = {'driver': 'gcs', 'bucket': bucket, 'path': path}
    else:
      kvstore = {'driver': 'file', 'path': path}
    return {'driver': saved['driver'], 'kvstore': kvstore}


def _read(
  array: ts.TensorStore, sharding: jax.sharding.Sharding, dtype
) -> jax.Array:
  """Reads the parts of an array that this process's devices hold."""
  dtype = jnp.dtype(dtype or array.dtype.numpy_dtype)

  def part(index):
    return np.asarray(array[index].read().result(), dtype=dtype)

  return jax.make_array_from_callback(tuple(array.shape), sharding, part)
