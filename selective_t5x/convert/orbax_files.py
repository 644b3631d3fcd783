"""Reads and writes checkpoints in T5X's Orbax layout, array by array.

    checkpoint_0/state/   {'target': parameters, 'state': {'step': 0}}

The engines' managers take a whole train state; here a few arrays at a time are
in memory, or one large one.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

STATE_FOLDER = 'state'
# Arrays of together this size are written at a time, a larger one alone.
_GROUP_BYTES = 2**25


@dataclasses.dataclass(frozen=True)
class LazyArray:
  """An array that is computed when it is written.

  Attributes:
    shape: its shape.
    dtype: its dtype.
    load: returns its values.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  load: Callable[[], np.ndarray]


class _LazyArrayHandler(ocp.type_handlers.TypeHandler):
  """Writes lazy arrays in groups, each as Orbax writes NumPy's arrays."""

  def __init__(self):
    self._handler = ocp.type_handlers.NumpyHandler()

  def typestr(self) -> str:
    return self._handler.typestr()

  async def metadata(self, infos):
    return await self._handler.metadata(infos)

  async def deserialize(self, infos, args=None):
    return await self._handler.deserialize(infos, args)

  async def serialize(self, values, infos, args=None):
    args = args or [ocp.SaveArgs()] * len(values)
    # Each group waits for the disk once.
    for group in _groups(values):
      futures = await self._handler.serialize(
        [values[i].load() for i in group],
        [infos[i] for i in group],
        [args[i] for i in group],
      )
      for future in futures:
        future.result()
    return []


class OrbaxFiles:
  """The parameters of a checkpoint; names begin below 'target'."""

  def __init__(self, path: pathlib.Path):
    """Reads the names, shapes and dtypes.

    Raises:
      ValueError, OSError: Orbax cannot read the checkpoint.
    """
    self._path = path.absolute() / STATE_FOLDER
    self._handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True)
    with ocp.Checkpointer(self._handler) as checkpointer:
      metadata = checkpointer.metadata(self._path).item_metadata
    if metadata is None:
      raise ValueError('Orbax reads no metadata there')
    self.arrays = {
      name: (tuple(array.shape), np.dtype(array.dtype))
      for name, array in traverse_util.flatten_dict(
        dict(metadata.tree)['target'], sep='/'
      ).items()
    }

  def read(self, name: str) -> np.ndarray:
    """Returns the values of one array."""
    keys = ('target', *name.split('/'))
    restore_args = {keys: ocp.RestoreArgs(restore_type=np.ndarray)}
    with ocp.Checkpointer(self._handler) as checkpointer:
      tree = checkpointer.restore(
        self._path,
        args=ocp.args.PyTreeRestore(
          item=traverse_util.unflatten_dict({keys: 0}),
          restore_args=traverse_util.unflatten_dict(restore_args),
          partial_restore=True,
        ),
      )
    return traverse_util.flatten_dict(tree)[keys]


def write(
  path: pathlib.Path, step: int, arrays: Mapping[str, LazyArray]
) -> None:
  """Writes a checkpoint without an optimiser's state.

  Args:
    path: the folder checkpoint_N, which must not exist.
    step: the train step that it is said to be of.
    arrays: {name below 'target': array}, written in this order.
  """
  tree: dict[str, Any] = {
    'target': traverse_util.unflatten_dict(dict(arrays), sep='/'),
    'state': {'step': np.asarray(step, np.int32)},
  }
  registry = ocp.type_handlers.create_type_handler_registry(
    (LazyArray, _LazyArrayHandler()),
    (np.ndarray, ocp.type_handlers.NumpyHandler()),
    # For no array here: without it, Orbax warns.
    (jax.Array, ocp.type_handlers.ArrayHandler()),
  )
  handler = ocp.PyTreeCheckpointHandler(
    use_ocdbt=True, type_handler_registry=registry
  )
  with ocp.Checkpointer(handler) as checkpointer:
    checkpointer.save(
      path.absolute() / STATE_FOLDER, args=ocp.args.PyTreeSave(tree)
    )


def _groups(arrays: Sequence[LazyArray]) -> Iterator[list[int]]:
  """Yields the numbers of arrays that are in memory together."""
  group: list[int] = []
  total = 0
  for number, array in enumerate(arrays):
    nbytes = array.dtype.itemsize * math.prod(array.shape)
    if group and total + nbytes > _GROUP_BYTES:
      yield group
      group, total = [], 0
    group.append(number)
    total += nbytes
  if group:
    yield group
