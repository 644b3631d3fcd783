"""Precompiles a tiny config for TPUs: needs the extra [aot] (make test-aot)."""

import json
import subprocess
import sys

import pytest

pytest.importorskip('libtpu', reason='libtpu, of the extra [aot], is missing')


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  folder = tmp_path_factory.mktemp('precompile')
  run = subprocess.run(
    [sys.executable, '-m', 'selective_t5x.main', '--run_mode=precompile']
    + ['--topology=v5e:2x2', "--gin.MODEL_DIR='out'"]
    + ['--gin_file=gin/experiments/variable_assignment.gin']
    + ['--gin_file=gin/test/tiny.gin']
    + ['--gin.partitioning.PjitPartitioner.num_partitions=2']
    + ['--compare_gin=gin/attention/selective.gin'],
    cwd=folder,
    capture_output=True,
    text=True,
  )
  assert run.returncode == 0, run.stderr[-3000:]
  return run.stdout, json.loads((folder / 'out/precompile.json').read_text())


def test_all_steps_of_both_configs(done):
  _, record = done
  assert list(record['configs']) == ['tiny', 'selective']
  for steps in record['configs'].values():
    assert list(steps) == ['train', 'eval', 'decode']
    for costs in steps.values():
      assert 0 < costs['total'] < record['hbm_bytes']
      assert costs['flops'] > 0 and costs['step_seconds'] > 0


def test_gradients_are_summed_over_the_data_axis(done):
  _, record = done
  train = record['configs']['tiny']['train']
  assert train['collectives']['all-reduce']['bytes'] > 0
  # AdamW keeps two numbers for each parameter.
  assert train['optimizer'] == pytest.approx(2 * train['parameters'], rel=0.01)


def test_the_table_has_both(done):
  text, _ = done
  assert text.count('step at least, ms') == 3
  assert 'v5e:2x2 (v5litepod-4): 4 chips' in text
