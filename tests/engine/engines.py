"""The command line on either engine, for tests of their agreement.

Put T5X, airio and jestimator on PYTHONPATH and install T5X's requirements, see
README.md; without them these tests skip.
"""

import os
import subprocess
import sys

import pytest

from selective_t5x import results

ENGINES = ('embedded', 't5x')


def python(engine, *args):
  """Runs Python with an engine forced; returns the finished process."""
  return subprocess.run(
    [sys.executable, *args],
    env=os.environ | {'SELECTIVE_T5X_ENGINE': engine},
    capture_output=True,
    text=True,
    check=False,
  )


def skip_without_t5x():
  """Skips the test, saying why, where the real T5X cannot be imported."""
  found = python('t5x', '-c', 'import selective_t5x, t5x.train, t5x.eval')
  if found.returncode:
    pytest.skip(f'no real T5X here: {found.stderr.strip().splitlines()[-1]}')


def command(engine, run_mode, *args):
  """Runs the suite's command line; it must succeed."""
  run = python(
    engine, '-m', 'selective_t5x.main', f'--run_mode={run_mode}', *args
  )
  assert run.returncode == 0, run.stderr[-3000:]
  return run


def losses(folder):
  """Returns the training losses of a run, one a step."""
  records = results.read_metrics(folder / 'train')
  return [record['loss'] for record in records if 'loss' in record]
