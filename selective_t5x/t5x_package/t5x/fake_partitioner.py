"""A partitioner for tests, which gives every array one partitioning."""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5x import partitioning


class FakePartitioner(partitioning.BasePartitioner):
  """Gives every array one partitioning over a mesh."""

  def __init__(self, mesh: Mesh, mesh_axes, params_on_devices: bool = True):
    """Stores the mesh, and the partitioning of every array."""
    super().__init__(num_partitions=1)
    self._global_mesh, self._mesh_axes = mesh, mesh_axes
    self._fake_params_on_devices = params_on_devices

  def get_data_layout(self, batch_size=None, host_index=None):
    """Returns a batch of one example, in one shard."""
    del batch_size, host_index
    return partitioning.DataLayout(
      batch_size=1,
      shard_id=1,
      num_shards=1,
      is_first_host_in_replica_set=True,
    )

  @property
  def mesh(self) -> Mesh:
    """The mesh."""
    return self._global_mesh

  @property
  def params_on_devices(self) -> bool:
    """Whether parameters are on the devices."""
    return self._fake_params_on_devices

  @property
  def _local_chunker(self) -> partitioning.LocalChunker:
    return partitioning.LocalChunker(self.mesh)

  def move_params_to_devices(self, train_state, train_state_axes):
    """Returns the train state as it is."""
    del train_state_axes
    return train_state

  def get_mesh_axes(self, train_state):
    """Returns the train state with the one partitioning as leaves."""
    axes = jax.tree.map(lambda _: self._mesh_axes, train_state)
    return axes.replace_step(None)

  def partition(
    self,
    fn,
    in_axis_resources,
    out_axis_resources,
    static_argnums=(),
    donate_argnums=(),
  ):
    """Returns the function, jitted and run under the mesh."""

    def shardings(axes):
      return jax.tree.map(
        lambda spec: NamedSharding(self.mesh, spec or PartitionSpec()),
        axes,
        is_leaf=lambda leaf: leaf is None,
      )

    jitted = jax.jit(
      fn,
      in_shardings=shardings(in_axis_resources),
      out_shardings=shardings(out_axis_resources),
      static_argnums=static_argnums,
      donate_argnums=donate_argnums,
    )
    return partitioning.PjittedFnWithContext(jitted, self.mesh)

  def compile(self, partitioned_fn, *args):
    """Compiles nothing."""
    del partitioned_fn, args
