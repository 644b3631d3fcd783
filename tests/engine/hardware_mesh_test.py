"""Meshes of hardware that is not here, and what one of its processes holds."""

import dataclasses
import itertools
import types

import numpy as np
import pytest

from selective_t5x.errors import UserError
from t5x import meshes, partitioning

# 4 x 4 chips of two cores; a host has 2 x 2 of them.
CHIPS, HOST = (4, 4, 1, 2), (2, 2, 1, 2)


@dataclasses.dataclass(frozen=True)
class Device:
  coords: tuple
  core_on_chip: int
  process_index: int
  id: int = 0
  platform: str = 'tpu'
  device_kind: str = 'TPU v3'


def devices():
  return [
    Device((x, y, z), core, x // 2 + 2 * (y // 2))
    for x, y, z, core in itertools.product(*map(range, CHIPS))
  ]


def mesh_of(tile):
  here = [d for d in devices() if d.process_index == 0]
  return meshes.get_mesh(tile, devices(), here)


@pytest.mark.parametrize(
  'tile', [(1, 1, 1, 1), (2, 1, 1, 2), (2, 2, 1, 2), (4, 2, 1, 2), (1, 4, 1, 1)]
)
def test_each_model_replica_is_a_tile(tile):
  mesh = mesh_of(tile)
  assert mesh.axis_names == ('data', 'model')
  assert mesh.devices.shape == (32 // np.prod(tile), np.prod(tile))
  assert set(mesh.devices.flat) == set(devices())
  for replica in mesh.devices:
    coords = np.array([meshes.get_coords(device) for device in replica])
    assert tuple(coords.max(0) - coords.min(0) + 1) == tile
    assert (coords.min(0) % tile == 0).all()


def test_the_rows_of_a_host_stay_together():
  hosts = [row[0].process_index for row in mesh_of((2, 1, 1, 2)).devices]
  assert hosts == sorted(hosts, key=hosts.index)
  assert [len(list(of)) for _, of in itertools.groupby(hosts)] == [2] * 4


@pytest.mark.parametrize('tile', [(3, 1, 1, 1), (2, 2)])
def test_tiles_that_do_not_fit_are_refused(tile):
  with pytest.raises(UserError, match='expected a divisor of each'):
    mesh_of(tile)


@pytest.mark.parametrize('process', range(4))
def test_a_process_holds_its_part_of_an_array(process):
  mesh = mesh_of((2, 1, 1, 2))
  rows = [
    r for r, d in enumerate(mesh.devices[:, 0]) if d.process_index == process
  ]
  chunker = partitioning.LocalChunker(
    types.SimpleNamespace(
      devices=mesh.devices,
      shape={'data': 8, 'model': 4},
      local_mesh=types.SimpleNamespace(
        devices=mesh.devices[rows], shape={'data': 2, 'model': 4}
      ),
    )
  )
  part = rows[0] // 2
  split = chunker.get_local_chunk_info((64, 6), ('data', 'model'))
  assert split.slice == (slice(16 * part, 16 * part + 16), slice(0, 6))
  assert split.replica_id == 0
  whole = chunker.get_local_chunk_info((64, 6), (None, 'model'))
  assert whole.slice[0] == slice(None) and whole.replica_id == part
  both = chunker.get_local_chunk_info((64,), (('data', 'model'),))
  assert both == partitioning.LocalChunkInfo(split.slice[:1], 0)
