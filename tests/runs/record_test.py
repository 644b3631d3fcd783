import json
import shlex
import subprocess
import sys
import types

import jax

from selective_t5x.runs import record


def test_each_start_adds_a_run(tmp_path):
  record.write_run_record(tmp_path, run_mode='train', seed=7)
  record.write_run_record(tmp_path, run_mode='eval', seed=None)
  runs = json.loads((tmp_path / 'run.json').read_text())['runs']
  assert [r['run_mode'] for r in runs] == ['train', 'eval']
  first = runs[0]
  assert first['seed'] == 7
  assert first['engine'] in ('embedded', 't5x')
  assert {'jax', 'flax', 'selective_t5x'} <= first['packages'].keys()
  assert first['device']['count'] >= 1 and first['device']['kind']
  assert first['command'] == shlex.join(['python', *sys.orig_argv[1:]])


def test_a_package_below_some_other_checkout_has_no_commit(tmp_path):
  subprocess.run(['git', 'init', '-q', str(tmp_path)], check=True)
  (tmp_path / '__init__.py').touch()
  assert record._git_state(tmp_path) is None


def test_a_gpus_driver_is_recorded(tmp_path):
  file = tmp_path / 'version'
  assert record._nvidia(file) == {'driver': None}
  for text, version in (
    (
      'NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256.02  Thu May 2\n'
      'GCC version:  gcc version 9.4.0 (Ubuntu 9.4.0-1ubuntu1~20.04.2)\n',
      '470.256.02',
    ),
    (
      'NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  '
      'Release Build\n',
      '550.54.15',
    ),
    ('no version\n', None),
  ):
    file.write_text(text)
    assert record._nvidia(file) == {'driver': version}


def test_only_a_run_on_a_gpu_has_a_driver(tmp_path, monkeypatch):
  record.write_run_record(tmp_path, run_mode='train', seed=0)
  gpu = types.SimpleNamespace(platform='gpu', device_kind='NVIDIA H200')
  monkeypatch.setattr(jax, 'devices', lambda: [gpu])
  monkeypatch.setattr(record, '_nvidia', lambda: {'driver': '550.54.15'})
  record.write_run_record(tmp_path, run_mode='train', seed=0)
  runs = json.loads((tmp_path / 'run.json').read_text())['runs']
  before, after = (run['device'] for run in runs)
  assert 'driver' not in before
  assert (after['kind'], after['driver']) == ('NVIDIA H200', '550.54.15')
