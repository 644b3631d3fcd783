"""The device mesh that a call runs under, and how attention is split over it.

XLA cannot split a kernel by itself. The mesh axes have T5X's names. Over axes
of other names every device computes the same, which is correct but slow.
"""

from typing import Any, NamedTuple

import jax
from jax.interpreters import pxla
from jax.sharding import AxisType, PartitionSpec

BATCH_AXES = ('replica', 'data')
HEAD_AXES = ('model',)


class Split(NamedTuple):
  """How arrays [B, H, ...] are split over a mesh.

  Attributes:
    mesh: a `jax.sharding.Mesh` or abstract mesh.
    batch: the mesh axes that B is split over.
    heads: the mesh axes that H is split over.
    shards: the number of parts of H.
  """

  mesh: Any
  batch: tuple[str, ...]
  heads: tuple[str, ...]
  shards: int

  def run(self, function, operands, results):
    """Runs a function on every device's part.

    Args:
      function: a function of the operands.
      operands: a tree of arrays [B or 1, H or P or 1, ...].
      results: a tree with True for each array [B, H or P, ...] it returns.
    """

    def spec(x):
      return PartitionSpec(
        *(
          axes if size > 1 else None
          for axes, size in zip((self.batch, self.heads), x.shape, strict=False)
        )
      )

    return jax.shard_map(
      function,
      mesh=self.mesh,
      in_specs=(jax.tree.map(spec, operands),),
      out_specs=jax.tree.map(
        lambda _: PartitionSpec(self.batch, self.heads), results
      ),
      axis_names=_free_axes(self.mesh),
      check_vma=False,
    )(operands)


def current():
  """Returns the mesh of `jax.set_mesh` or of `with mesh:`, or None."""
  mesh: Any = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    mesh = pxla.thread_resources.env.physical_mesh
  return None if mesh.empty else mesh


def platform() -> str:
  """Returns where a call made now will run: 'tpu', 'cpu' or 'gpu'."""
  return jax.default_backend() if current() is None else _device().platform


def device_kind() -> str:
  """Returns the kind of device that a call made now will run on."""
  return _device().device_kind


def _device():
  mesh = current()
  if mesh is None:
    return jax.devices()[0]
  if isinstance(mesh, jax.sharding.AbstractMesh):
    return mesh.abstract_device
  return mesh.devices.flat[0]


def split(batch: int, heads: int) -> Split | None:
  """Returns how to split arrays [batch, heads, ...]; None for one device.

  An axis that the mesh does not divide stays whole. Axes that an enclosing
  `jax.shard_map` has split are left alone.
  """
  mesh = current()
  several = mesh is not None and mesh.size > 1
  free = _free_axes(mesh) if several else set()
  if not free:
    return None
  parts = {}
  for names, size in ((BATCH_AXES, batch), (HEAD_AXES, heads)):
    axes = tuple(name for name in names if name in free)
    shards = 1
    for axis in axes:
      shards *= mesh.shape[axis]
    parts[names] = (axes, shards) if size % shards == 0 else ((), 1)
  return Split(mesh, parts[BATCH_AXES][0], *parts[HEAD_AXES])


def _free_axes(mesh) -> set[str]:
  return {
    name
    for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
    if kind != AxisType.Manual
  }
