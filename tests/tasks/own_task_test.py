"""The template of docs/tasks: copied, filled with data, shown and trained."""

import json
import pathlib
import shutil

import pytest

from tools import official_sets as official

ROOT = pathlib.Path(__file__).parents[2]
TEMPLATE = ROOT / 'docs/tasks/my_tasks.py'


@pytest.fixture
def folder(tmp_path):
  shutil.copy(TEMPLATE, tmp_path)
  lines = [f'{i} plus {i}?\t{2 * i}' for i in range(60)]
  official.write_lines(tmp_path / 'train.tsv', lines)
  official.write_lines(tmp_path / 'validation.tsv', lines[:7])
  return tmp_path


def test_the_template_is_short():
  assert len(TEMPLATE.read_text().splitlines()) < 30


def test_it_is_shown(commands, folder):
  done = commands.run(
    'selective_t5x.tasks.show',
    [
      '--module=my_tasks',
      '--task=my_task',
      '--examples=1',
      "--gin.vocabularies.Choice.kind='bytes'",
    ],
    folder,
  )
  assert done.returncode == 0, done.stderr
  assert 'my_task: inputs, targets; splits train, validation' in done.stdout
  assert 'plus' in done.stdout


@pytest.mark.slow
def test_it_is_trained_and_evaluated(commands, folder):
  done = commands.run(
    'selective_t5x.main',
    [
      '--run_mode=train',
      '--gin_file=gin/experiments/wikipedia_sample_lm.gin',
      '--gin_file=gin/attention/selective.gin',
      '--gin_file=gin/test/tiny.gin',
      "--gin.MIXTURE_OR_TASK_MODULE='my_tasks'",
      "--gin.MIXTURE_OR_TASK_NAME='my_task'",
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 24, 'targets': 8}",
      "--gin.vocabularies.Choice.kind='bytes'",
      "--gin.MODEL_DIR='run'",
    ],
    folder,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  done = commands.run(
    'selective_t5x.main',
    [
      '--run_mode=eval',
      '--gin_file=run/config.gin',
      '--gin_file=gin/runs/eval.gin',
      "--gin.CHECKPOINT_PATH='run/checkpoint_4'",
      "--gin.EVAL_OUTPUT_DIR='out'",
    ],
    folder,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert 'my_task: exact_match' in done.stdout
  measured = json.loads((folder / 'out/evaluation.json').read_text())
  assert 0 <= measured['my_task']['exact_match'] <= 1
