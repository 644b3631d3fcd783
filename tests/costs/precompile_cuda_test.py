"""Precompiles configs for GPUs: needs the extra [cuda] (make test-cuda)."""

import json
import subprocess
import sys

import pytest

pytest.importorskip(
  'jax_cuda12_plugin', reason='the extra [cuda] is missing: make install-cuda'
)


def precompile(folder, topology, *flags):
  """Returns what is printed and the record."""
  run = subprocess.run(
    [sys.executable, '-m', 'selective_t5x.main', '--run_mode=precompile']
    + [f'--topology={topology}', "--gin.MODEL_DIR='out'"]
    + ['--gin_file=gin/experiments/variable_assignment.gin', *flags]
    + ['--compare_gin=gin/attention/selective.gin'],
    cwd=folder,
    capture_output=True,
    text=True,
  )
  assert run.returncode == 0, run.stderr[-3000:]
  return run.stdout, json.loads((folder / 'out/precompile.json').read_text())


@pytest.fixture(scope='module')
def two_machines(tmp_path_factory):
  return precompile(
    tmp_path_factory.mktemp('precompile'),
    'h100:2x8',
    '--gin_file=gin/test/tiny.gin',
    '--gin.BATCH_SIZE=16',
    '--gin.partitioning.PjitPartitioner.num_partitions=2',
  )


def test_all_steps_of_both_configs(two_machines):
  text, record = two_machines
  assert 'h100:2x8: 16 chips, 2 hosts' in text
  assert list(record['configs']) == ['tiny', 'selective']
  for steps in record['configs'].values():
    assert list(steps) == ['train', 'eval', 'decode']
    for costs in steps.values():
      assert 0 < costs['total'] < record['hbm_bytes']
      assert costs['flops'] > 0 and costs['step_seconds'] > 0


def test_gradients_are_summed_over_the_machines(two_machines):
  _, record = two_machines
  train = record['configs']['tiny']['train']
  reduced = train['collectives']['all-reduce']
  assert reduced['bytes'] > 0
  # At least the gradients go over the network, 50 GB/s a GPU.
  far = 2 * 7 / 8 * train['parameters'] / 50e9
  assert train['seconds']['interconnect'] >= far
  assert train['optimizer'] == pytest.approx(2 * train['parameters'], rel=0.01)


@pytest.mark.parametrize('topology', ['h100:1', 'a100:1'])
def test_the_papers_decoder_of_12_layers(topology, tmp_path):
  _, record = precompile(
    tmp_path,
    topology,
    '--gin_file=gin/models/sizes/d12.gin',
    "--gin.DTYPE='bfloat16'",
    '--gin.BATCH_SIZE=8',
  )
  plain, selective = (
    record['configs'][name]['train'] for name in ('d12', 'selective')
  )
  assert 80e6 < plain['parameters'] / 4 < 130e6
  assert plain['total'] < record['hbm_bytes']
  # Rows are short here, so that attention is a small part of the step.
  assert 1.0 < selective['flops'] / plain['flops'] < 1.05
