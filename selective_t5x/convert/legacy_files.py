"""Reads and writes checkpoints in T5X's older layout, one array at a time.

checkpoint_0/checkpoint    msgpack: {'version': 3, 'optimizer': {'target':
                           parameters, 'state': {'step': 0}}}
checkpoint_0/target.encoder.…kernel/    a zarr array, whose TensorStore spec
                           stands in msgpack in its place
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorstore as ts
from flax import serialization, traverse_util

from selective_t5x.convert.orbax_files import LazyArray
from selective_t5x.errors import UserError

FILE = 'checkpoint'
_VERSION = 3
_CHUNK_BYTES = 2**26  # As T5X's.


class LegacyFiles:
  """The parameters of a checkpoint; names begin below 'target'."""

  def __init__(self, path: pathlib.Path):
    """Reads the msgpack file.

    Raises:
      UserError: it is no checkpoint, or an array is saved as uint16, as long
        gone versions of T5X saved bfloat16.
      ValueError: it is not msgpack.
    """
    self._path = path
    contents = serialization.msgpack_restore((path / FILE).read_bytes())
    contents = contents.get('optimizer', contents)
    if 'target' not in contents:
      raise UserError(f'{path / FILE} is no T5X checkpoint: it has no "target"')
    self._leaves = traverse_util.flatten_dict(
      contents['target'], is_leaf=lambda _, leaf: _is_spec(leaf), sep='/'
    )
    self.arrays = {
      name: (
        (tuple(leaf['metadata']['shape']), self._dtype(name, leaf))
        if _is_spec(leaf)
        else (np.shape(leaf), np.asarray(leaf).dtype)
      )
      for name, leaf in self._leaves.items()
    }

  def read(self, name: str) -> np.ndarray:
    """Returns the values of one array."""
    leaf = self._leaves[name]
    if not _is_spec(leaf):
      return np.asarray(leaf)
    relative = leaf['kvstore'].get('path') or leaf['path']
    # The saved spec has the file system that it was written to.
    spec = {
      'driver': leaf['driver'],
      'kvstore': {'driver': 'file', 'path': str(self._path / relative)},
    }
    return ts.open(spec, open=True, read=True).result().read().result()

  def _dtype(self, name, leaf) -> np.dtype:
    written = leaf.get('dtype') or leaf['metadata'].get('dtype')
    if written in ('uint16', '<u2'):
      raise UserError(
        f'{self._path}: {name} is saved as uint16, for bfloat16 in versions of '
        'T5X that no longer exist'
      )
    return (
      ts.dtype(written).numpy_dtype if leaf.get('dtype') else np.dtype(written)
    )


def write(
  path: pathlib.Path, step: int, arrays: Mapping[str, LazyArray]
) -> None:
  """Writes a checkpoint without an optimiser's state.

  Args:
    path: the folder checkpoint_N; it is made.
    step: the train step that it is said to be of.
    arrays: {name below 'target': array}, written in this order.
  """
  path.mkdir(parents=True)
  specs = {}
  for name, array in arrays.items():
    folder = f'target/{name}'.replace('/', '.')
    spec: dict[str, Any] = {
      'driver': 'zarr',
      'dtype': array.dtype.name,
      'kvstore': {'driver': 'file', 'path': folder},
      'metadata': {
        'shape': list(array.shape),
        'chunks': _chunks(array),
        'compressor': {'id': 'gzip', 'level': 1},
      },
    }
    opened = spec | {'kvstore': {'driver': 'file', 'path': str(path / folder)}}
    ts.open(opened, create=True, open=True).result().write(
      array.load()
    ).result()
    specs[name] = spec
  contents = {
    'version': _VERSION,
    'optimizer': {
      'target': traverse_util.unflatten_dict(specs, sep='/'),
      'state': {'step': np.asarray(step, np.int32), 'param_states': {}},
    },
  }
  (path / FILE).write_bytes(serialization.msgpack_serialize(contents))


def _chunks(array: LazyArray) -> list[int]:
  """Returns the shape of the parts that are compressed alone."""
  row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
  rows = min(array.shape[0], max(1, _CHUNK_BYTES // row_bytes))
  return [rows, *array.shape[1:]]


def _is_spec(leaf) -> bool:
  return isinstance(leaf, dict) and {'driver', 'kvstore', 'metadata'} <= set(
    leaf
  )
