"""Tests of --run_mode=precompile where no TPU compiler is."""

import importlib.util
import subprocess
import sys

import pytest

FILES = ('--gin_file=gin/experiments/variable_assignment.gin',)


def run(*args):
  return subprocess.run(
    [sys.executable, '-m', 'selective_t5x.main', *args],
    capture_output=True,
    text=True,
  )


@pytest.mark.parametrize(
  'args, message',
  [
    (('--run_mode=precompile',), 'no --topology'),
    (
      ('--run_mode=precompile', '--topology=v5e:16x17'),
      '--topology=v5e:16x17: no such TPU slice',
    ),
    (
      ('--run_mode=train', '--topology=v5e:16x16'),
      '--topology is for --run_mode=precompile',
    ),
  ],
)
def test_wrong_flags_are_one_line(args, message):
  done = run(*args, *FILES)
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert message in line


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is not None, reason='libtpu is here'
)
def test_without_the_compiler_the_extra_is_named():
  done = run('--run_mode=precompile', '--topology=v5e:16x16', *FILES)
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert 'libtpu' in line and 'selective_t5x[aot]' in line
