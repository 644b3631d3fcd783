"""The parts of sharded arrays that the devices of one process hold."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jax.sharding import Mesh


@dataclasses.dataclass
class LocalChunkInfo:
  """The part of an array on this process's devices.

  Attributes:
    slice: the part, a slice for each axis of the array.
    replica_id: this process's number among those that hold the same part.
  """

  slice: tuple[slice, ...]
  replica_id: int


class LocalChunker:
  """Says which part of a sharded array this process holds.

  Attributes:
    num_chunks: {axis of the mesh: processes along it}.
    chunk_ids: {axis of the mesh: position of this process along it}.
  """

  def __init__(self, global_mesh: Mesh):
    """Takes the mesh of all processes."""
    self.global_mesh = global_mesh
    self.mesh_axes = list(global_mesh.shape)
    local = global_mesh.local_mesh
    first = np.argwhere(global_mesh.devices == local.devices.flat[0])[0]
    self.num_chunks, self.chunk_ids = {}, {}
    for axis, position in zip(self.mesh_axes, first, strict=True):
      self.num_chunks[axis] = global_mesh.shape[axis] // local.shape[axis]
      self.chunk_ids[axis] = int(position) // local.shape[axis]

  def get_local_chunk_info(
    self,
    global_shape: Sequence[int],
    mesh_axes: Sequence[str | tuple[str, ...] | None],
  ) -> LocalChunkInfo:
    """Returns the part of an array on this process's devices.

    Args:
      global_shape: the shape of the whole array.
      mesh_axes: for each of its axes the axes of the mesh that it is split
        over, or None.
    """
    parts, used = [], []
    for size, axes in zip(global_shape, mesh_axes, strict=False):
      names = (axes,) if isinstance(axes, str) else tuple(axes or ())
      used += names
      if not names:
        parts.append(slice(None))
        continue
      width = size // self._processes(names)
      start = self.get_shard_id(names) * width
      parts.append(slice(start, start + width))
    parts += [slice(None)] * (len(global_shape) - len(parts))
    return LocalChunkInfo(tuple(parts), self.get_replica_id(used))

  def get_shard_id(self, sharded_mesh_axes: str | Iterable[str]) -> int:
    """Returns this process's number along some axes of the mesh."""
    number = 0
    for axis in _names(sharded_mesh_axes):
      number = number * self.num_chunks[axis] + self.chunk_ids[axis]
    return number

  def get_replica_id(self, sharded_mesh_axes: str | Iterable[str]) -> int:
    """Returns this process's number along the other axes of the mesh."""
    sharded = _names(sharded_mesh_axes)
    return self.get_shard_id([a for a in self.mesh_axes if a not in sharded])

  def _processes(self, axes: Iterable[str]) -> int:
    return int(np.prod([self.num_chunks[axis] for axis in axes]))


def _names(axes: str | Iterable[str]) -> tuple[str, ...]:
  return (axes,) if isinstance(axes, str) else tuple(axes)
