"""A run that was saved before the package had rooms still loads.

data/saved_run.tar.gz holds the config.gin, the vocabulary and the checkpoint of
three steps of variable_assignment with selection and the memory loss, two
layers, from commit 26b8f4b.
"""

import pathlib
import tarfile

import numpy as np
import pytest

from selective_t5x.runs import restore

_ARCHIVE = pathlib.Path(__file__).parent / 'data' / 'saved_run.tar.gz'
# Log-likelihoods of the first batch's targets, printed at that commit.
_SCORES = [
  -7.182587623596191,
  -4.119227409362793,
  -6.816184997558594,
  -6.451564788818359,
]


@pytest.fixture
def saved(tmp_path):
  with tarfile.open(_ARCHIVE) as archive:
    archive.extractall(tmp_path, filter='data')
  return tmp_path / 'decoder'


def test_its_scores_are_those_of_then(saved):
  with restore.restored(str(saved)) as run:
    (batch,) = run.batches(1)
    scores, _ = run.model.score_batch(run.params, batch)
  np.testing.assert_allclose(scores, _SCORES, rtol=1e-5)


@pytest.mark.slow
def test_the_command_line_evaluates_it(saved, commands, tmp_path):
  done = commands.run(
    'selective_t5x.main',
    [
      '--run_mode=eval',
      f'--gin_file={saved}/config.gin',
      '--gin_file=gin/runs/eval.gin',
      f"--gin.CHECKPOINT_PATH='{saved}/checkpoint_3'",
      f"--gin.EVAL_OUTPUT_DIR='{tmp_path}/evaluation'",
      '--gin.EVAL_STEPS=2',
      '--gin.EVAL_EXAMPLES=8',
    ],
    tmp_path,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert (tmp_path / 'evaluation' / 'evaluation.json').exists()
