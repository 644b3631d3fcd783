"""T5X's older checkpoint layout, that of the published T5 checkpoints.

    checkpoint_1000000/checkpoint    msgpack: {'version': 3, 'optimizer':
                                     {'target': parameters, 'state': …}}
    checkpoint_1000000/target.encoder.…kernel/    a zarr array for each large
                                     one, whose TensorStore spec is in msgpack

It is read, never written.
"""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from etils import epath
from flax import serialization

from selective_t5x.errors import UserError
from t5x import checkpoints, state_utils

FILE = 'checkpoint'


class LegacyReader:
  """Reads the arrays of a checkpoint in the older layout."""

  def __init__(self, path: str):
    """Reads the msgpack file.

    Raises:
      UserError: it is none, or of a version that no T5X reads any more.
    """
    self._path = path
    file = epath.Path(path) / FILE
    try:
      contents = serialization.msgpack_restore(file.read_bytes())
    except Exception as error:  # msgpack has many, some of them ValueErrors
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

  def arrays(self) -> dict[str, checkpoints.SavedArray]:
    """Returns {name: array} of all that the checkpoint holds."""
    return {
      name: checkpoints.SavedArray(
        name,
        tuple(leaf['metadata']['shape'])
        if isinstance(leaf, dict)
        else np.shape(leaf),
      )
      for name, leaf in self._leaves.items()
      if leaf is not None
    }

  def read(self, requests: checkpoints.ReadRequests) -> dict[str, jax.Array]:
    """Returns {name: array} of those that are asked for."""
    # Opened all at once: a file system far away takes its time for each.
    opened = {
      name: ts.open(self._spec(name), open=True, read=True)
      for name in requests
      if isinstance(self._leaves[name], dict)
    }
    arrays = {
      name: opened[name].result()
      if name in opened
      else np.asarray(self._leaves[name])
      for name in requests
    }
    return {
      name: _read(arrays[name], sharding, dtype)
      for name, (sharding, dtype) in requests.items()
    }

  def _spec(self, name: str) -> dict[str, Any]:
    """Returns the TensorStore spec of an array in this checkpoint's folder.

    The saved spec has the path within the folder, and the file system that the
    checkpoint was written to, not the one it is read from.
    """
    saved = self._leaves[name]
    if saved['metadata'].get('dtype') == '<u2':
      raise UserError(
        f'{self._path}: {name} is saved as uint16, for bfloat16 in versions of '
        'T5X that are long gone'
      )
    relative = saved['kvstore'].get('path') or saved.get('path')
    path = os.path.join(self._path, relative)
    if path.startswith('gs://'):
      bucket, _, path = path.removeprefix('gs://').partition('/')
      kvstore = {'driver': 'gcs', 'bucket': bucket, 'path': path}
    else:
      kvstore = {'driver': 'file', 'path': path}
    return {'driver': saved['driver'], 'kvstore': kvstore}


def _read(array, sharding: jax.sharding.Sharding, dtype) -> jax.Array:
  """Reads the parts of an array that this process's devices hold."""
  if isinstance(array, ts.TensorStore):
    dtype = dtype or array.dtype.numpy_dtype

  def part(index):
    found = array[index]
    if isinstance(found, ts.TensorStore):
      found = found.read().result()
    return np.asarray(found, dtype=dtype and jnp.dtype(dtype))

  return jax.make_array_from_callback(tuple(array.shape), sharding, part)
