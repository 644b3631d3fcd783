"""The embedded engine against the real T5X, where that can be imported.

Skips without the real T5X, see engines.py.
"""

import json

import numpy as np
import pytest

from tests.engine import engines
from tests.engine.engines import ENGINES, losses
from tools import official_sets as official

STEPS = 10
FILES = (
  '--gin_file=gin/experiments/wikipedia_sample_lm.gin',
  '--gin_file=gin/attention/selective.gin',
)
TINY = (
  '--gin_file=gin/test/tiny.gin',
  "--gin.vocabularies.Choice.kind='bytes'",
)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Ten steps on each engine: {engine: model folder}."""
  engines.skip_without_t5x()
  folders = {}
  for engine in ENGINES:
    folders[engine] = tmp_path_factory.mktemp(engine)
    engines.command(
      engine,
      'train',
      *FILES,
      *TINY,
      f"--gin.MODEL_DIR='{folders[engine]}'",
      f'--gin.TRAIN_STEPS={STEPS}',
    )
  return folders


@pytest.mark.slow
def test_first_losses_agree(runs):
  embedded, t5x = (losses(runs[engine]) for engine in ENGINES)
  assert len(embedded) == len(t5x) == STEPS
  np.testing.assert_allclose(embedded, t5x, rtol=1e-4)


@pytest.mark.slow
def test_every_result_says_which_engine_ran(runs):
  for engine, folder in runs.items():
    record = json.loads((folder / 'run.json').read_text())['runs'][-1]
    assert record['engine'] == engine


@pytest.mark.slow
@pytest.mark.parametrize('reader, writer', [ENGINES, ENGINES[::-1]])
def test_a_saved_configuration_parses_on_the_other_engine(reader, writer, runs):
  run = engines.command(
    reader,
    'train',
    f'--gin_file={runs[writer] / "config.gin"}',
    '--dry_run',
  )
  assert 'attention.selective_attention.selection_head' in run.stdout


def _two_steps_from(engine, checkpoint, folder, writer):
  """Losses of two more steps from a checkpoint.

  On the data that follows; from an embedded checkpoint, whose position T5X
  cannot read, on the data from its beginning.
  """
  follows = writer == 't5x'
  engines.command(
    engine,
    'train',
    *FILES,
    *TINY,
    f"--gin.MODEL_DIR='{folder}'",
    f'--gin.TRAIN_STEPS={STEPS + 2}',
    f"--gin.utils.RestoreCheckpointConfig.path='{checkpoint}'",
    "--gin.utils.RestoreCheckpointConfig.mode='specific'",
    # T5X restores the iterator wherever it saves one.
    f'--gin.utils.RestoreCheckpointConfig.restore_dataset={follows}',
    f'--gin.utils.SaveCheckpointConfig.save_dataset={follows}',
  )
  return losses(folder)


@pytest.mark.slow
@pytest.mark.parametrize('writer', ENGINES)
def test_each_engine_restores_the_others_checkpoint(writer, runs, tmp_path):
  checkpoint = runs[writer] / f'checkpoint_{STEPS}'
  embedded, t5x = (
    _two_steps_from(engine, checkpoint, tmp_path / engine, writer)
    for engine in ENGINES
  )
  assert len(embedded) == 2
  np.testing.assert_allclose(embedded, t5x, rtol=1e-4)


@pytest.mark.slow
def test_both_engines_score_the_benchmarks_alike(runs, tmp_path):
  official.write(tmp_path / 'data', 8)
  measured = {}
  for engine in ENGINES:
    folder = tmp_path / engine
    engines.command(
      engine,
      'eval',
      f'--gin_file={runs["embedded"] / "config.gin"}',
      '--gin_file=gin/runs/downstream.gin',
      f"--gin.CHECKPOINT_PATH='{runs['embedded'] / f'checkpoint_{STEPS}'}'",
      f"--gin.EVAL_OUTPUT_DIR='{folder}'",
      f"--gin.DATA_DIR='{tmp_path / 'data'}'",
    )
    for task in official.SETS:
      log = folder / 'inference_eval' / f'{task}-{STEPS:06}.jsonl'
      entries = [json.loads(line) for line in log.read_text().splitlines()]
      measured[engine, task] = [
        (entry['score'], entry['is_argmax']) for entry in entries
      ]
  for task in official.SETS:
    np.testing.assert_allclose(
      measured['embedded', task], measured['t5x', task], atol=1e-4
    )
