"""Meshes of devices: 'data' for the batch, 'model' for tensor parallelism."""

import math
import warnings
from collections.abc import Sequence

import jax
import numpy as np
from absl import logging
from jax.experimental import mesh_utils
from jax.interpreters import pxla
from jax.sharding import Mesh

from selective_t5x.errors import UserError

TpuMesh = tuple[int, int, int, int]  # (x, y, z, cores of a chip)
OtherMesh = tuple[int, int]  # (hosts, devices of a host)
HardwareMesh = TpuMesh | OtherMesh

# The part of a TPU of the first generations that holds one model replica, by
# its number of devices: T5X's choice. For newer ones JAX has a better one.
_TILES = {
  1: (1, 1, 1, 1),
  2: (1, 1, 1, 2),
  4: (2, 1, 1, 2),
  8: (2, 2, 1, 2),
  16: (4, 2, 1, 2),
}

with warnings.catch_warnings():
  warnings.simplefilter('ignore', DeprecationWarning)
  # Holds the mesh of `with mesh:`, which JAX shows in no other way.
  _THREAD_RESOURCES = getattr(pxla, 'thread_resources', None)


def global_mesh_defined() -> bool:
  """Tells whether the code runs under a mesh."""
  if not jax.sharding.get_abstract_mesh().empty:
    return True
  return _THREAD_RESOURCES is not None and (
    not _THREAD_RESOURCES.env.physical_mesh.empty
  )


def bounds_from_last_device(last_device: jax.Device) -> HardwareMesh:
  """Returns the size of the hardware whose last device is given.

  That is (x, y, z, cores) of a TPU, else (hosts, devices of a host).
  """
  if len(getattr(last_device, 'coords', ())) == 3:
    x, y, z = last_device.coords
    return x + 1, y + 1, z + 1, last_device.core_on_chip + 1
  return jax.process_count(), jax.local_device_count()


def get_coords(device: jax.Device) -> HardwareMesh:
  """Returns where a device is: (x, y, z, core), else (host, its number)."""
  if hasattr(device, 'coords'):
    return (*device.coords, device.core_on_chip)
  return device.process_index, device.id % jax.local_device_count()


def get_mesh(
  model_parallel_submesh: HardwareMesh,
  input_devices: Sequence[jax.Device] = (),
  input_local_devices: Sequence[jax.Device] = (),
  tile_by_host_if_needed: bool = True,
  backend: str | None = None,
) -> Mesh:
  """Returns the mesh whose model replicas are tiles of the hardware.

  Args:
    model_parallel_submesh: size of a tile along each axis of the hardware, see
      bounds_from_last_device.
    input_devices: all devices; empty: those of the backend.
    input_local_devices: devices of the first process; empty: of the backend.
    tile_by_host_if_needed: whether the devices of a host stay together.
    backend: platform of the devices; None: the default one.

  Raises:
    UserError: the tiles do not fit the hardware.
  """
  devices = list(input_devices) or jax.devices(backend)
  local = list(input_local_devices) or jax.local_devices(0, backend)
  hardware, host = (
    bounds_from_last_device(max(part, key=get_coords))
    for part in (devices, local)
  )
  tile = tuple(model_parallel_submesh)
  if len(tile) != len(hardware) or any(
    size % part for size, part in zip(hardware, tile, strict=True)
  ):
    raise UserError(
      f'PjitPartitioner.model_parallel_submesh = {tile}: expected a divisor of '
      f'each of {tuple(hardware)}, the size of the hardware'
    )
  grid = np.empty(hardware, dtype=object)
  for device in devices:
    grid[get_coords(device)] = device
  splits = [
    _split(size, part, of_host if tile_by_host_if_needed else 1)
    for size, part, of_host in zip(hardware, tile, host, strict=True)
  ]
  # Each axis of the hardware becomes four; from slow to fast these are: the
  # hosts and devices of 'data', then those of 'model'.
  grid = grid.reshape([size for split in splits for size in split])
  grid = grid.transpose(
    [4 * axis + part for part in range(4) for axis in range(len(splits))]
  )
  return Mesh(grid.reshape(-1, math.prod(tile)), ('data', 'model'))


def _split(size: int, tile: int, host: int) -> tuple[int, int, int, int]:
  """Splits an axis of the hardware.

  Args:
    size: devices along the axis.
    tile: devices of a model replica along it.
    host: devices of a host along it.

  Returns:
    (hosts, devices of each) for 'data', then for 'model'; their product is
    `size`.
  """
  if max(tile, host) % min(tile, host):
    raise UserError(
      f'PjitPartitioner.model_parallel_submesh has {tile} where a host '
      f'has {host}: expected a multiple or a divisor'
    )
  if tile >= host:
    return size // tile, 1, tile // host, host
  return size // host, host // tile, 1, tile


def get_cpu_mesh() -> Mesh:
  """Returns the mesh (hosts, devices of a host), for tests on a CPU."""
  grid = np.empty((jax.process_count(), jax.local_device_count()), dtype=object)
  for device in jax.devices():
    grid[device.process_index, device.id % jax.local_device_count()] = device
  return Mesh(grid, ('data', 'model'))


def get_gpu_mesh(num_partitions: int) -> Mesh:
  """Returns a mesh of GPUs whose model replicas stay within hosts, if they fit.

  Raises:
    UserError: num_partitions and the devices of a host do not divide.
  """
  of_host, hosts = jax.local_device_count(), jax.process_count()
  within = min(num_partitions, of_host)
  over, rest = divmod(num_partitions, within)
  if rest or of_host % within or hosts % over:
    raise UserError(
      f'PjitPartitioner.num_partitions = {num_partitions}: expected a divisor '
      f'or a multiple of {of_host}, the devices of each of {hosts} hosts'
    )
  grid = mesh_utils.create_hybrid_device_mesh(
    mesh_shape=(of_host // within, within),
    dcn_mesh_shape=(hosts // over, over),
    process_is_granule=True,
  )
  return Mesh(grid, ('data', 'model'))


def default_mesh(
  num_partitions: int = 1,
  model_parallel_submesh: HardwareMesh | None = None,
  backend: str | None = None,
  ici_mesh_shape: Sequence[int] | None = None,
  dcn_mesh_shape: Sequence[int] | None = None,
) -> Mesh:
  """Returns a mesh with the axes 'data' and 'model'.

  Differs from T5X on CPU, where T5X gives every local device to 'model':
  num_partitions is honoured on every platform. A CPU with fewer devices than
  that gives all of them to 'model'.

  Args:
    num_partitions: devices along 'model'; the others are along 'data'.
    model_parallel_submesh: (x, y, z, cores) of one model replica on a TPU; its
      product replaces num_partitions.
    backend: platform of the devices; None: the default one.
    ici_mesh_shape: (replica, data, model) within a slice; with
      dcn_mesh_shape the mesh has a third axis 'replica'.
    dcn_mesh_shape: (replica, data, model) over slices.

  Raises:
    UserError: the devices cannot be divided so, or the platform is missing.
  """
  devices = _devices(backend)
  if ici_mesh_shape is not None and dcn_mesh_shape is not None:
    grid = mesh_utils.create_hybrid_device_mesh(
      ici_mesh_shape, dcn_mesh_shape, devices=devices
    )
    return Mesh(grid, ('replica', 'data', 'model'))
  tile = model_parallel_submesh
  if tile:
    num_partitions = math.prod(tile)
  elif devices[0].device_kind in ('TPU v2', 'TPU v3'):
    tile = _TILES.get(num_partitions)
  if tile and _fits(tile, bounds_from_last_device(devices[-1])):
    return get_mesh(tile, backend=backend)
  if devices[0].platform == 'cpu' and num_partitions > len(devices):
    logging.warning(
      'PjitPartitioner.num_partitions = %d on %d CPU device(s), which hold one '
      'model replica together',
      num_partitions,
      len(devices),
    )
    num_partitions = len(devices)
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


def _devices(backend: str | None) -> list[jax.Device]:
  try:
    return jax.devices(backend)
  except RuntimeError as error:
    reason = str(error).splitlines()[0]
    raise UserError(
      f'PjitPartitioner.backend = {backend!r}: {reason}; expected a platform '
      'that is here, or None for the default one'
    ) from error


def _fits(tile: HardwareMesh, hardware: HardwareMesh) -> bool:
  """Tells whether tiles of a TPU fill the hardware."""
  return len(tile) == len(hardware) == 4 and not any(
    size % part for size, part in zip(hardware, tile, strict=True)
  )
