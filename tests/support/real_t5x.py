"""Runs code on the real T5X, in a process of its own; for tests that skip.

Put T5X, airio and jestimator on PYTHONPATH, see docs/engines.md.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest


def python(*args, engine='t5x'):
  """Runs Python with these arguments, on the real T5X unless said."""
  return subprocess.run(
    [sys.executable, *args],
    cwd=pathlib.Path(__file__).parents[2],
    env=os.environ | {'SELECTIVE_T5X_ENGINE': engine},
    capture_output=True,
    text=True,
    check=False,
  )


def skip_without(module):
  """Skips the calling test where the real T5X has no such module to import."""
  result = python('-c', f'import selective_t5x, {module}')
  if result.returncode:
    pytest.skip(f'no real T5X here: {result.stderr.strip().splitlines()[-1]}')


def figures(code):
  """Runs code and returns its last line, which is JSON."""
  run = python('-c', code)
  assert run.returncode == 0, run.stderr[-3000:]
  return json.loads(run.stdout.splitlines()[-1])
