"""Partitioning of computations over a device mesh by logical axis names.

Modules name the axes of their parameters ('embed', 'heads', …); rules map
names to the mesh's axes: 'data' (the batch), 'model' (tensor parallelism) and,
over several TPU slices, 'replica'.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import numpy as np
from absl import logging
from flax import traverse_util
from flax.linen import partitioning as flax_partitioning
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selective_t5x.errors import UserError

LogicalAxisRules = Sequence[tuple[str, str | tuple[str, ...] | None]]
HardwareMesh = Sequence[int]
PyTree = Any


def default_mesh(
  num_partitions: int = 1,
  model_parallel_submesh: HardwareMesh | None = None,
  backend: str | None = None,
  ici_mesh_shape: HardwareMesh | None = None,
  dcn_mesh_shape: HardwareMesh | None = None,
) -> Mesh:
  """Returns a mesh with the axes 'data' and 'model'.

  Differs from T5X on CPU, where T5X gives every local device to 'model':
  num_partitions is honoured on every platform.

  Args:
    num_partitions: devices along 'model'; the others are along 'data'.
    model_parallel_submesh: (x, y, z, cores) of one model replica on a TPU; its
      product replaces num_partitions. The placement is left to JAX.
    backend: platform of the devices; None: the default one.
    ici_mesh_shape: (replica, data, model) within a slice; with
      dcn_mesh_shape the mesh has a third axis 'replica'.
    dcn_mesh_shape: (replica, data, model) over slices.

  Raises:
    UserError: the devices cannot be divided so, or the platform is missing.
  """
  try:
    devices = jax.devices(backend)
  except RuntimeError as error:
    reason = str(error).splitlines()[0]
    raise UserError(
      f'PjitPartitioner.backend = {backend!r}: {reason}; expected a platform '
      'that is here, or None for the default one'
    ) from error
  if ici_mesh_shape is not None and dcn_mesh_shape is not None:
    grid = mesh_utils.create_hybrid_device_mesh(
      ici_mesh_shape, dcn_mesh_shape, devices=devices
    )
    return Mesh(grid, ('replica', 'data', 'model'))
  if model_parallel_submesh:
    num_partitions = math.prod(model_parallel_submesh)
  if len(devices) % num_partitions:
    raise UserError(
      f'{len(devices)} devices cannot be divided into model replicas of '
      f'{num_partitions}: PjitPartitioner.num_partitions must divide the '
      'number of devices'
    )
  grid = mesh_utils.create_device_mesh(
    (len(devices) // num_partitions, num_partitions), devices=devices
  )
  return Mesh(grid, ('data', 'model'))


def standard_logical_axis_rules(
  activation_partitioning_dims: int = 1,
  parameter_partitioning_dims: int = 1,
  additional_rules: LogicalAxisRules | None = None,
) -> LogicalAxisRules:
  """Returns T5X's rules from logical axis names to mesh axes.

  Args:
    activation_partitioning_dims: 2 also shards the activations' 'embed' axis
      over 'model'.
    parameter_partitioning_dims: 2 also shards the parameters' 'embed' axis over
      'data' (fully sharded data parallelism).
    additional_rules: rules tried after these.

  Raises:
    ValueError: a number of dimensions other than 1 or 2.
  """
  dims = (activation_partitioning_dims, parameter_partitioning_dims)
  embed = {
    (1, 1): [('embed', None)],
    (2, 1): [('embed', 'model')],
    (1, 2): [('embed', 'data')],
    (2, 2): [('embed', 'model'), ('embed', 'data')],
  }
  if dims not in embed:
    raise ValueError(
      f'`activation_partitioning_dims` = {dims[0]}, '
      f'`parameter_partitioning_dims` = {dims[1]}: expected 1 or 2 each'
    )
  rules = [('batch', 'data')]
  # The first rule that fits wins, so these get 'model' before 'embed' does.
  rules += [(n, 'model') for n in ('vocab', 'mlp', 'heads', 'joined_kv')]
  rules += embed[dims]
  rules += [
    (name, None)
    for name in (
      'kv',
      'relpos_buckets',
      'abspos_buckets',
      'length',
      'layers',
      'stack',
      'mlp_activations',
    )
  ]
  return rules + list(additional_rules or ())


@dataclasses.dataclass
class DataLayout:
  """The part of the global batch that this process reads.

  Attributes:
    batch_size: examples in the global batch.
    shard_id: this process's shard, in [0, num_shards).
    num_shards: distinct shards; processes that hold different parts of one
      model replica share a shard.
    is_first_host_in_replica_set: whether this process represents its shard.
  """

  batch_size: int
  shard_id: int
  num_shards: int
  is_first_host_in_replica_set: bool


class _PartitionedFn:
  """A jitted function that runs under its mesh and logical axis rules."""

  def __init__(self, jitted, mesh: Mesh, rules: LogicalAxisRules):
    self._jitted = jitted
    self._mesh = mesh
    self._rules = rules

  def __call__(self, *args):
    with self._mesh, flax_partitioning.axis_rules(self._rules):
      return self._jitted(*args)

  def trace(self, *args):
    with self._mesh, flax_partitioning.axis_rules(self._rules):
      return self._jitted.trace(*args)

  def lower(self, *args):
    with self._mesh, flax_partitioning.axis_rules(self._rules):
      return self._jitted.lower(*args)


class BasePartitioner(abc.ABC):
  """Interface of partitioners."""

  @property
  @abc.abstractmethod
  def mesh(self) -> Mesh:
    """The device mesh."""

  @property
  @abc.abstractmethod
  def data_partition_spec(self) -> PartitionSpec:
    """The partitioning of a batch's leading axis."""

  @abc.abstractmethod
  def get_data_layout(self, batch_size: int | None = None) -> DataLayout:
    """Returns the part of a global batch that this process reads."""

  @abc.abstractmethod
  def get_mesh_axes(self, train_state):
    """Returns the train state with a PartitionSpec, or None, as leaves."""

  @abc.abstractmethod
  def partition(
    self,
    fn: Callable,
    in_axis_resources: PyTree,
    out_axis_resources: PyTree,
    static_argnums: int | Sequence[int] = (),
    donate_argnums: int | Sequence[int] = (),
  ):
    """Returns fn, jitted and sharded."""

  @abc.abstractmethod
  def compile(self, partitioned_fn, *args):
    """Returns a partitioned function compiled for arguments like `args`."""


class PjitPartitioner(BasePartitioner):
  """Partitions with jax.jit over a mesh, by logical axis rules."""

  def __init__(
    self,
    num_partitions: int | None = None,
    model_parallel_submesh: HardwareMesh | None = None,
    backend: str | None = None,
    ici_mesh_shape: HardwareMesh | None = None,
    dcn_mesh_shape: HardwareMesh | None = None,
    logical_axis_rules: LogicalAxisRules | None = None,
  ):
    """Sets the mesh (see `default_mesh`) and the rules.

    Args:
      num_partitions: devices of one model replica; exclusive with
        model_parallel_submesh.
      model_parallel_submesh: (x, y, z, cores) of one model replica on a TPU.
      backend: platform of the devices.
      ici_mesh_shape: (replica, data, model) within a slice.
      dcn_mesh_shape: (replica, data, model) over slices.
      logical_axis_rules: pairs (logical name, mesh axis or None), the first
        that fits wins; None: standard_logical_axis_rules().

    Raises:
      ValueError: both or neither of the first two are given.
    """
    if bool(num_partitions) == bool(model_parallel_submesh):
      raise ValueError(
        'PjitPartitioner: set one of num_partitions and '
        f'model_parallel_submesh, got {num_partitions} and '
        f'{model_parallel_submesh}'
      )
    self._mesh_args = (
      num_partitions,
      model_parallel_submesh,
      backend,
      ici_mesh_shape,
      dcn_mesh_shape,
    )
    rules = logical_axis_rules or standard_logical_axis_rules()
    if ici_mesh_shape is not None and dcn_mesh_shape is not None:
      rules = [
        (k, ('replica', 'data') if k == 'batch' else v) for k, v in rules
      ]
    self._rules = tuple(rules)

  @functools.cached_property
  def mesh(self) -> Mesh:
    """The device mesh."""
    mesh = default_mesh(*self._mesh_args)
    logging.info('Device mesh: %s', dict(mesh.shape))
    return mesh

  @property
  def logical_axis_rules(self) -> LogicalAxisRules:
    """The rules from logical axis names to mesh axes."""
    return self._rules

  @property
  def data_partition_spec(self) -> PartitionSpec:
    """The partitioning of a batch's leading axis."""
    return flax_partitioning.logical_to_mesh_axes(['batch'], self._rules)

  def get_data_layout(self, batch_size: int | None = None) -> DataLayout:
    """Returns the part of a global batch that this process reads.

    Args:
      batch_size: examples in the global batch; None: one for each part.

    Raises:
      UserError: the batch cannot be divided over the mesh's data axis.
    """
    sharding = NamedSharding(self.mesh, self.data_partition_spec)
    data_axes = jax.tree.leaves(tuple(self.data_partition_spec))
    parts = math.prod(self.mesh.shape[axis] for axis in data_axes)
    batch_size = batch_size or parts
    if batch_size % parts:
      raise UserError(
        f'Batch size ({batch_size}) must be divisible by corresponding data '
        f'mesh size ({parts}).'
      )
    rows_of = {}
    for device, index in sharding.devices_indices_map((batch_size,)).items():
      start = index[0].start or 0
      rows_of.setdefault(device.process_index, set()).add(start)
    shards = sorted({tuple(sorted(rows)) for rows in rows_of.values()})
    mine = tuple(sorted(rows_of[jax.process_index()]))
    first = min(p for p, r in rows_of.items() if tuple(sorted(r)) == mine)
    return DataLayout(
      batch_size=batch_size,
      shard_id=shards.index(mine),
      num_shards=len(shards),
      is_first_host_in_replica_set=first == jax.process_index(),
    )

  def get_logical_axes(self, train_state):
    """Returns the train state with logical PartitionSpecs as leaves."""
    return train_state.as_logical_axes()

  def get_mesh_axes(self, train_state):
    """Returns the train state with a PartitionSpec, or None, as leaves.

    Raises:
      ValueError: a parameter has the same logical axis twice.
    """
    logical = self.get_logical_axes(train_state)

    def to_mesh(name, axes):
      if axes is None or axes is traverse_util.empty_node:
        return axes
      try:
        return flax_partitioning.logical_to_mesh_axes(axes, self._rules)
      except ValueError as e:
        raise ValueError(f'Failed to map logical axes for {name}') from e

    flat = traverse_util.flatten_dict(
      logical.state_dict(), keep_empty_nodes=True, sep='/'
    )
    return logical.restore_state(
      traverse_util.unflatten_dict(
        {name: to_mesh(name, axes) for name, axes in flat.items()}, sep='/'
      )
    )

  def shardings(self, axes: PyTree) -> PyTree:
    """Returns a NamedSharding for each PartitionSpec; None: replicated."""
    return jax.tree.map(
      lambda spec: NamedSharding(self.mesh, spec or PartitionSpec()),
      axes,
      is_leaf=lambda x: x is None,
    )

  def partition(
    self,
    fn: Callable,
    in_axis_resources: PyTree,
    out_axis_resources: PyTree,
    static_argnums: int | Sequence[int] = (),
    donate_argnums: int | Sequence[int] = (),
  ) -> _PartitionedFn:
    """Returns fn, jitted and sharded.

    Args:
      fn: a function of pytrees of arrays.
      in_axis_resources: one entry for each argument: a PartitionSpec, None
        (replicated), or a tree of those that is a prefix of the argument.
      out_axis_resources: the same for the result.
      static_argnums: arguments that are compile-time constants.
      donate_argnums: arguments whose buffers the result may reuse.
    """
    jitted = jax.jit(
      fn,
      in_shardings=self.shardings(in_axis_resources),
      out_shardings=self.shardings(out_axis_resources),
      static_argnums=static_argnums,
      donate_argnums=donate_argnums,
    )
    return _PartitionedFn(jitted, self.mesh, self._rules)

  def compile(self, partitioned_fn: _PartitionedFn, *args):
    """Returns a partitioned function compiled for arguments like `args`."""
    return partitioned_fn.lower(*args).compile()

  def put_batch(self, batch: PyTree) -> PyTree:
    """Puts this process's rows of a batch on its devices.

    Args:
      batch: arrays [rows of this process, …].

    Returns:
      global arrays [batch size, …], split by data_partition_spec.
    """
    sharding = NamedSharding(self.mesh, self.data_partition_spec)
    return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
      flax.core.unfreeze(batch),
    )
