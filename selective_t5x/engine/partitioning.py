"""Partitioning of computations over a device mesh by logical axis names.

Modules name the axes of their parameters ('embed', 'heads', …); rules map
names to the mesh's axes: 'data' (the batch), 'model' (tensor parallelism) and,
over several TPU slices, 'replica'.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
from absl import logging
from flax import traverse_util
from flax.linen import partitioning as flax_partitioning
from jax.sharding import Mesh, PartitionSpec  # noqa: F401

# T5X exports all of these from this module.
from t5x.base_partitioner import (  # noqa: F401
  AxisNames,
  BasePartitioner,
  CompiledPartitionedCallable,
  DataLayout,
  JaxDevice,
  LogicalAxisRules,
  PartitionedCallable,
  PjittedFnWithContext,
  PyTree,
  host_local_array_to_global_array,
  with_sharding_constraint,
)
from t5x.meshes import (  # noqa: F401
  HardwareMesh,
  OtherMesh,
  TpuMesh,
  bounds_from_last_device,
  default_mesh,
  get_coords,
  get_cpu_mesh,
  get_gpu_mesh,
  get_mesh,
  global_mesh_defined,
)
from t5x.train_state import TrainState

if TYPE_CHECKING:  # see __getattr__
  from t5x.local_chunks import LocalChunker, LocalChunkInfo  # noqa: F401


def __getattr__(name: str) -> Any:
  """Returns a name that only T5X's users use, not the engine."""
  if name not in ('LocalChunker', 'LocalChunkInfo'):
    raise AttributeError(f'module t5x.partitioning has no attribute {name!r}')
  return getattr(importlib.import_module('t5x.local_chunks'), name)


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


class BasePjitPartitioner(BasePartitioner):
  """Partitions with jax.jit over a mesh."""

  # Rules from logical axis names to mesh axes, for flax's modules.
  _logical_axis_rules: LogicalAxisRules = ()

  @functools.cached_property
  def _local_chunker(self) -> 'LocalChunker':
    return __getattr__('LocalChunker')(self.mesh)

  @functools.cached_property
  def mesh(self) -> Mesh:
    """The device mesh."""
    mesh = default_mesh(
      self._num_partitions,
      self._model_parallel_submesh,
      self._backend,
      self._ici_mesh_shape,
      self._dcn_mesh_shape,
    )
    logging.info('Device mesh: %s', dict(mesh.shape))
    return mesh

  def partition(
    self,
    fn: Callable,
    in_axis_resources: PyTree,
    out_axis_resources: PyTree,
    static_argnums: int | Sequence[int] = (),
    donate_argnums: int | Sequence[int] = (),
  ) -> PjittedFnWithContext:
    """Returns fn, jitted and sharded; for the arguments see BasePartitioner."""
    jitted = jax.jit(
      fn,
      in_shardings=self.shardings(in_axis_resources),
      out_shardings=self.shardings(out_axis_resources),
      static_argnums=static_argnums,
      donate_argnums=donate_argnums,
    )
    return PjittedFnWithContext(jitted, self.mesh, self._logical_axis_rules)

  def compile(
    self, partitioned_fn: PjittedFnWithContext, *args
  ) -> CompiledPartitionedCallable:
    """Returns a partitioned function compiled for arguments like `args`."""
    return partitioned_fn.lower(*args).compile()


class PjitPartitioner(BasePjitPartitioner):
  """Partitions with jax.jit over a mesh, by logical axis rules."""

  def __init__(
    self,
    num_partitions: int | None = None,
    model_parallel_submesh: HardwareMesh | None = None,
    params_on_devices: bool = True,
    backend: str | None = None,
    ici_mesh_shape: Sequence[int] | None = None,
    dcn_mesh_shape: Sequence[int] | None = None,
    logical_axis_rules: LogicalAxisRules | None = None,
  ):
    """Sets the mesh, see BasePartitioner, and the rules.

    Args:
      num_partitions: devices of one model replica.
      model_parallel_submesh: its (x, y, z, cores) on a TPU, instead.
      params_on_devices: accepted for T5X's sake.
      backend: platform of the devices.
      ici_mesh_shape: (replica, data, model) within a slice.
      dcn_mesh_shape: (replica, data, model) over slices.
      logical_axis_rules: pairs (logical name, mesh axis or None), the first
        that fits wins; None: standard_logical_axis_rules().

    Raises:
      ValueError: both or neither of the first two are set.
    """
    super().__init__(
      num_partitions,
      model_parallel_submesh,
      params_on_devices,
      backend,
      ici_mesh_shape,
      dcn_mesh_shape,
    )
    rules = logical_axis_rules or standard_logical_axis_rules()
    if ici_mesh_shape is not None and dcn_mesh_shape is not None:
      rules = [
        (k, ('replica', 'data') if k == 'batch' else v) for k, v in rules
      ]
    self._logical_axis_rules = tuple(rules)
    (self._data_axis,) = flax_partitioning.logical_to_mesh_axes(
      ['batch'], self._logical_axis_rules
    )

  @property
  def logical_axis_rules(self) -> LogicalAxisRules:
    """The rules from logical axis names to mesh axes."""
    return self._logical_axis_rules

  def get_logical_axes(self, train_state: TrainState) -> TrainState:
    """Returns the train state with logical PartitionSpecs as leaves."""
    return train_state.as_logical_axes()

  def get_mesh_axes(self, train_state: TrainState) -> TrainState:
    """Returns the train state with a PartitionSpec, or None, as leaves.

    Raises:
      ValueError: a parameter has the same logical axis twice.
    """
    logical = self.get_logical_axes(train_state)

    def to_mesh(name, axes):
      if axes is None or axes is traverse_util.empty_node:
        return axes
      try:
        return flax_partitioning.logical_to_mesh_axes(
          axes, self._logical_axis_rules
        )
      except ValueError as e:
        raise ValueError(f'Failed to map logical axes for {name}') from e

    flat = traverse_util.flatten_dict(
      logical.state_dict(), keep_empty_nodes=True, sep='/'
    )
    mesh_axes = logical.restore_state(
      traverse_util.unflatten_dict(
        {name: to_mesh(name, axes) for name, axes in flat.items()}, sep='/'
      )
    )
    if not logical.flax_mutables and train_state.flax_mutables:
      # Collections without axis names; T5X cannot train with such ones.
      mesh_axes = mesh_axes.replace_flax_mutables(
        jax.tree.map(lambda _: None, train_state.flax_mutables)
      )
    return mesh_axes
