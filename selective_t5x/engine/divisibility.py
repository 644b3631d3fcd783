"""Checks that arrays can be divided over a mesh."""

import math
from typing import Any

from flax import traverse_util
from jax.sharding import Mesh, PartitionSpec

from selective_t5x.errors import UserError

# Descriptions of axes whose logical name is unclear.
_AXES = {
  'joined_kv': 'heads times their size',
  'kv': "a head's size",
  'embed': "the model's width",
}
# The setting for the number of devices along each axis of the mesh.
_SETTINGS = {
  'model': 'PjitPartitioner.num_partitions or model_parallel_submesh',
  'data': 'the devices that PjitPartitioner.num_partitions leaves',
}


def check(shapes: Any, logical_axes: Any, mesh_axes: Any, mesh: Mesh) -> None:
  """Checks that the devices of a mesh divide the axes that are split over them.

  Args:
    shapes: nested dict of objects with a shape.
    logical_axes: the same with a PartitionSpec of logical names, or None.
    mesh_axes: the same with a PartitionSpec of the mesh's axes, or None.
    mesh: the devices.

  Raises:
    UserError: names the first array that they do not divide.
  """
  if math.prod(mesh.shape.values()) == 1:
    return
  flat = (
    traverse_util.flatten_dict(tree, keep_empty_nodes=True, sep='/')
    for tree in (shapes, logical_axes, mesh_axes)
  )
  shapes, logical_axes, mesh_axes = flat
  for name, spec in mesh_axes.items():
    if not isinstance(spec, PartitionSpec) or not hasattr(
      shapes.get(name), 'shape'
    ):
      continue
    for axis, divided_over in enumerate(spec):
      names = (
        [divided_over] if isinstance(divided_over, str) else divided_over or ()
      )
      parts = math.prod(mesh.shape[name] for name in names)
      size = shapes[name].shape[axis]
      if size % parts:
        label = (logical_axes.get(name) or {axis: axis})[axis]
        label = f'{label} ({_AXES[label]})' if label in _AXES else label
        settings = ', '.join(_SETTINGS.get(n, n) for n in names)
        raise UserError(
          f'{name}: its axis {label} has {size} entries, which {parts} '
          f'devices do not divide ({settings}; the rules are '
          'partitioning.standard_logical_axis_rules)'
        )
