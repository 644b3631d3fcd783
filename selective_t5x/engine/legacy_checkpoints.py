"""Reads T5X's older checkpoint layout, used by the published T5 checkpoints.

    checkpoint_1000000/checkpoint    msgpack: {'version': 3, 'optimizer':
                                     {'target': parameters, 'state': …}}
    checkpoint_1000000/target.encoder.…kernel/    a zarr array for each large
                                     one, whose TensorStore spec is in msgpack

This layout is never written.
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
      UserError: it is not msgpack, or of a version that no T5X reads any more.
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

  def arrays(self) -> dict[str, checkpoints.SavedArray]:
    """Returns {name: array} of all arrays in the checkpoint."""
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
    """Returns {name: array} of the requested arrays."""
    # Opens all at once, since a remote file system is slow for each.
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

    The saved spec has the path within the folder and the file system that the
    checkpoint was written to, which may not be the present one.
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
    values = array[index]
    if isinstance(values, ts.TensorStore):
      values = values.read().result()
    return np.asarray(values, dtype=dtype and jnp.dtype(dtype))

  return jax.make_array_from_callback(tuple(array.shape), sharding, part)
