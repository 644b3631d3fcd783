import subprocess
import sys

import jax
import pytest


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope='session')
def selective_run(tmp_path_factory):
  """The folder of a run of one step: two layers, rows of 16 tokens and more."""
  folder = tmp_path_factory.mktemp('runs') / 'selective'
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'selective_t5x.main',
      '--run_mode=train',
      '--gin_file=gin/experiments/variable_assignment.gin',
      '--gin_file=gin/attention/selective.gin',
      '--gin_file=gin/test/tiny.gin',
      '--gin.NUM_LAYERS=2',
      '--gin.TRAIN_STEPS=1',
      '--gin.EVAL_PERIOD=0',
      f'--gin.MODEL_DIR={str(folder)!r}',
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return folder
