import json
import shlex
import subprocess
import sys

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
