"""Interface of partitioners, and what all of them do alike."""

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import flax
import jax
import numpy as np
from absl import logging
from flax.linen import partitioning as flax_partitioning
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selective_t5x.errors import UserError
from t5x.meshes import HardwareMesh, global_mesh_defined
from t5x.train_state import TrainState

if TYPE_CHECKING:  # beside the engine
  from t5x.local_chunks import LocalChunker, LocalChunkInfo

JaxDevice = jax.Device
LogicalAxisRules = Sequence[tuple[str, str | tuple[str, ...] | None]]
PartitionedCallable = Callable[..., Any]
CompiledPartitionedCallable = Callable[..., Any]
PyTree = Any


class AxisNames(tuple):
  """Names of an array's axes; a leaf of trees, which a tuple is not."""

  __slots__ = ()

  def __new__(cls, *names: str | None):
    """Takes the name of each axis, or None."""
    return super().__new__(cls, names)

  def __repr__(self):
    return f'AxisNames{super().__repr__()}'


def with_sharding_constraint(x: jax.Array, axis_resources: PartitionSpec):
  """Says how an array is split over the mesh.

  Nothing happens without a mesh or, as in T5X, on a CPU.
  """
  if jax.devices()[0].platform == 'cpu' or not global_mesh_defined():
    return x
  return jax.lax.with_sharding_constraint(x, axis_resources)


def host_local_array_to_global_array(
  arr_tree: PyTree, mesh: Mesh, pspecs: PyTree
) -> PyTree:
  """Makes global arrays of the parts that each process has.

  Args:
    arr_tree: arrays, this process's part of each.
    mesh: the mesh of all processes.
    pspecs: a PartitionSpec for each array, or for a subtree; None: replicated.
  """
  return multihost_utils.host_local_array_to_global_array(
    arr_tree, mesh, _specs(pspecs)
  )


def _specs(axes: PyTree) -> PyTree:
  """Returns the tree with an empty PartitionSpec in place of each None."""
  return jax.tree.map(
    lambda spec: PartitionSpec() if spec is None else spec,
    axes,
    is_leaf=lambda x: x is None,
  )


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


class PjittedFnWithContext:
  """A jitted function that runs under its mesh and logical axis rules."""

  def __init__(
    self,
    pjitted_fn: Callable[..., Any],
    partition_mesh: Mesh,
    logical_axis_rules: LogicalAxisRules = (),
  ):
    self._pjitted_fn = pjitted_fn
    self._mesh = partition_mesh
    self._logical_axis_rules = logical_axis_rules

  def __call__(self, *args, **kwargs):
    """Calls the function."""
    return self._in_context(self._pjitted_fn, *args, **kwargs)

  def trace(self, *args, **kwargs):
    """Traces the function for arguments like these."""
    return self._in_context(self._pjitted_fn.trace, *args, **kwargs)

  def lower(self, *args, **kwargs):
    """Lowers the function for arguments like these."""
    return self._in_context(self._pjitted_fn.lower, *args, **kwargs)

  def _in_context(self, fn, *args, **kwargs):
    with self._mesh, flax_partitioning.axis_rules(self._logical_axis_rules):
      return fn(*args, **kwargs)


class BasePartitioner(abc.ABC):
  """Interface of partitioners, and what all of them do alike."""

  def __init__(
    self,
    num_partitions: int | None = None,
    model_parallel_submesh: HardwareMesh | None = None,
    params_on_devices: bool = True,
    backend: str | None = None,
    ici_mesh_shape: Sequence[int] | None = None,
    dcn_mesh_shape: Sequence[int] | None = None,
  ):
    """Stores the settings of the mesh, see `default_mesh`.

    Args:
      num_partitions: devices of one model replica; exclusive with
        model_parallel_submesh.
      model_parallel_submesh: (x, y, z, cores) of one model replica on a TPU.
      params_on_devices: False asks T5X to leave parameters in the memory of the
        host. Here they are always on the devices, which changes no result.
      backend: platform of the devices.
      ici_mesh_shape: (replica, data, model) within a slice.
      dcn_mesh_shape: (replica, data, model) over slices.

    Raises:
      ValueError: both or neither of the first two are set.
    """
    if bool(num_partitions) == bool(model_parallel_submesh):
      raise ValueError(
        'PjitPartitioner: set one of num_partitions and '
        f'model_parallel_submesh, got {num_partitions} and '
        f'{model_parallel_submesh}'
      )
    if not params_on_devices:
      logging.log_first_n(
        logging.WARNING,
        'PjitPartitioner.params_on_devices = False: parameters are on the '
        'devices all the same',
        1,
      )
    self._num_partitions = num_partitions
    self._model_parallel_submesh = model_parallel_submesh
    self._params_on_devices = params_on_devices
    self._backend = backend
    self._ici_mesh_shape = ici_mesh_shape
    self._dcn_mesh_shape = dcn_mesh_shape
    several_slices = ici_mesh_shape is not None and dcn_mesh_shape is not None
    # The axes of the mesh that split a batch.
    self._data_axis = ('replica', 'data') if several_slices else 'data'

  @property
  def mesh(self) -> Mesh:
    """The device mesh."""
    raise NotImplementedError

  @property
  @abc.abstractmethod
  def _local_chunker(self) -> 'LocalChunker':
    """Says which parts of arrays this process holds."""

  @property
  def params_on_devices(self) -> bool:
    """The setting of that name, see __init__."""
    return self._params_on_devices

  @params_on_devices.setter
  def params_on_devices(self, value: bool) -> None:
    self._params_on_devices = value

  @property
  def use_shardy_partitioner(self) -> bool:
    """Whether JAX partitions with Shardy."""
    return jax.config.jax_use_shardy_partitioner

  @property
  def data_partition_spec(self) -> PartitionSpec:
    """The partitioning of a batch's leading axis."""
    return PartitionSpec(self._data_axis)

  @property
  def data_mesh_size(self) -> int:
    """The number of parts into which the mesh splits a batch."""
    axes = jax.tree.leaves(tuple(self.data_partition_spec))
    return math.prod(self.mesh.shape[axis] for axis in axes)

  @property
  def data_shards(self) -> int:
    """The number of different parts of a batch that processes read."""
    return self.get_data_layout().num_shards

  @property
  def data_shard_id(self) -> int:
    """The part of a batch that this process reads."""
    return self.get_data_layout().shard_id

  def get_data_layout(
    self, batch_size: int | None = None, host_index: int | None = None
  ) -> DataLayout:
    """Returns the part of a global batch that this process reads.

    Args:
      batch_size: examples in the global batch; None: one for each part.
      host_index: another process, which T5X does not support either.

    Raises:
      UserError: the batch cannot be divided over the mesh's data axis.
    """
    if host_index is not None:
      raise NotImplementedError('host_index: expected None, this process')
    sharding = NamedSharding(self.mesh, self.data_partition_spec)
    parts = self.data_mesh_size
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

  def get_local_chunk_info(
    self,
    global_shape: Sequence[int],
    mesh_axes: Sequence[str | tuple[str, ...] | None],
  ) -> 'LocalChunkInfo':
    """Returns the part of an array on this process, see LocalChunker."""
    return self._local_chunker.get_local_chunk_info(global_shape, mesh_axes)

  def move_params_to_devices(
    self, train_state: TrainState, train_state_axes: TrainState
  ) -> TrainState:
    """Puts a train state on the devices.

    Args:
      train_state: arrays; with several processes, this process's parts.
      train_state_axes: the same with a PartitionSpec, or None, as leaves.
    """
    if jax.process_count() > 1:
      return host_local_array_to_global_array(
        train_state, self.mesh, train_state_axes
      )
    return jax.device_put(train_state, self.shardings(train_state_axes))

  def get_logical_axes(self, train_state: TrainState) -> TrainState:
    """Returns the train state with logical PartitionSpecs, or None, as leaves.

    Here all are None; see PjitPartitioner.
    """
    return train_state.restore_state(
      jax.tree.map(lambda _: None, train_state.state_dict())
    )

  def get_mesh_axes(self, train_state: TrainState) -> TrainState:
    """Returns the train state with a PartitionSpec, or None, as leaves."""
    raise NotImplementedError

  def shardings(self, axes: PyTree) -> PyTree:
    """Returns a NamedSharding for each PartitionSpec; None: replicated."""
    return jax.tree.map(
      lambda spec: NamedSharding(self.mesh, spec), _specs(axes)
    )

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

  @abc.abstractmethod
  def partition(
    self,
    fn: Callable,
    in_axis_resources: PyTree,
    out_axis_resources: PyTree,
    static_argnums: int | Sequence[int] = (),
    donate_argnums: int | Sequence[int] = (),
  ) -> PartitionedCallable:
    """Returns fn, jitted and sharded.

    Args:
      fn: a function of pytrees of arrays.
      in_axis_resources: one entry for each argument: a PartitionSpec, None
        (replicated), or a tree of those that is a prefix of the argument.
      out_axis_resources: the same for the result.
      static_argnums: arguments that are compile-time constants.
      donate_argnums: arguments whose buffers the result may reuse.
    """

  @abc.abstractmethod
  def compile(
    self, partitioned_fn: PartitionedCallable, *args
  ) -> CompiledPartitionedCallable:
    """Returns a partitioned function compiled for arguments like `args`."""
