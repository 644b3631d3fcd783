"""Tests of the table of TPU slices."""

import pytest

from selective_t5x.costs import topologies
from selective_t5x.errors import UserError


@pytest.mark.parametrize(
  'name, topology, chips, hosts, chips_per_host',
  [
    ('v4-8', 'v4:2x2x1', 4, 1, 4),
    ('v4-128', 'v4:4x4x4', 64, 16, 4),
    ('v4-4096', 'v4:8x16x16', 2048, 512, 4),
    ('v5litepod-1', 'v5e:1x1', 1, 1, 1),
    ('v5litepod-8', 'v5e:2x4', 8, 1, 8),
    ('v5litepod-16', 'v5e:4x4', 16, 4, 4),
    ('v5litepod-256', 'v5e:16x16', 256, 64, 4),
    ('v5p-12288', 'v5p:16x16x24', 6144, 1536, 4),
    ('v6e-256', 'v6e:16x16', 256, 64, 4),
  ],
)
def test_names(name, topology, chips, hosts, chips_per_host):
  part = topologies.find(name, '--tpu')
  assert part == topologies.find(topology, '--topology')
  assert part == topologies.find(name.replace('v5litepod', 'v5e'), '--tpu')
  assert (part.name, part.topology) == (name, topology)
  assert (part.chips, part.hosts) == (chips, hosts)
  assert part.chips_per_host == chips_per_host


def test_every_slice_is_whole_hosts():
  assert len(topologies.slices()) == 38
  for part in topologies.slices().values():
    assert part.hosts * part.chips_per_host == part.chips


@pytest.mark.parametrize(
  'name, nearest',
  [
    ('v4-127', 'v4-128'),
    ('v5e:16x17', 'v5e:16x16'),
  ],
)
def test_the_nearest_name(name, nearest):
  with pytest.raises(UserError, match=f'--tpu={name}: .*nearest: .*{nearest}'):
    topologies.find(name, '--tpu')
