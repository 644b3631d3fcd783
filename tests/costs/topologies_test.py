"""Tests of the table of TPU slices."""

import pytest

from selective_t5x.costs import gpus, topologies
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


@pytest.mark.parametrize(
  ('name', 'hosts', 'chips'),
  [
    ('h100:8', 1, 8),
    ('h100:2x8', 2, 16),
    ('a100:1', 1, 1),
    ('h200:4', 1, 4),
    ('b200:8', 1, 8),
  ],
)
def test_gpus_go_by_their_number(name, hosts, chips):
  part = topologies.find_any(name, '--topology')
  assert (part.name, part.topology, part.hosts) == (name, name, hosts)
  assert part.chips == chips == hosts * part.chips_per_host
  assert part.chip.kind.startswith('NVIDIA')


@pytest.mark.parametrize('name', ['h100', 'h100:9', 'h100:0', 'h100:2x2x2'])
def test_there_are_no_such_machines(name):
  with pytest.raises(UserError, match=f'--topology={name}: .*expected h100:N'):
    topologies.find_any(name, '--topology')


def test_a_chip_of_neither_kind_has_its_nearest_names():
  with pytest.raises(UserError, match='GPUs h100:8 .*nearest: h100'):
    topologies.find_any('h10:8', '--topology')
  assert topologies.find_any('v4-8', '--topology').name == 'v4-8'


def test_the_compiler_is_told_what_the_chip_is():
  text = gpus.GPUS['a100'].target
  assert 'shared_memory_per_block_optin: 166912' in text
  assert 'cuda_compute_capability { major: 8 minor: 0 }' in text
  assert 'memory_bandwidth: 2039000000000\n' in text
