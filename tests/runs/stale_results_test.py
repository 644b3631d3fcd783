"""Infer and eval, by the command line, into folders that have results."""

import json

import pytest

_GIN_FILES = {'infer': 'infer_file', 'eval': 'eval'}


@pytest.fixture
def command(commands, selective_run, tmp_path):
  """Runs a mode with the files of the run, into a folder of this test."""
  checkpoint = selective_run / 'checkpoint_1'

  def command(mode, *bindings, to):
    return commands.run(
      'selective_t5x.main',
      [
        f'--run_mode={mode}',
        f'--gin_file={selective_run / "config.gin"}',
        f'--gin_file=gin/runs/{_GIN_FILES[mode]}.gin',
        f'--gin.CHECKPOINT_PATH={str(checkpoint)!r}',
        f'--gin.{mode.upper()}_OUTPUT_DIR={to!r}',
        '--gin.BATCH_SIZE=4',
        *(f'--gin.{binding}' for binding in bindings),
      ],
      tmp_path,
    )

  return command


def content(folder):
  return {
    path.relative_to(folder): path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file()
  }


def refused(done, folder, before, message):
  assert done.returncode == 2, done.stderr[-3000:]
  line = done.stderr.splitlines()[-1]
  assert line.startswith('error: ') and message in line, line
  assert 'give another output folder' in line
  assert content(folder) == before


def test_predictions_of_other_settings_are_not_there_already(command, tmp_path):
  line = {'inputs': 'a 3 b 7 a', 'targets': '3'}
  (tmp_path / 'texts.jsonl').write_text(3 * f'{json.dumps(line)}\n')
  score = (
    'INFER_MODE="score"',
    'INPUT_FILE="texts.jsonl"',
    'TARGETS_KEY="targets"',
  )
  done = command('infer', *score, to='out')
  assert done.returncode == 0, done.stderr[-3000:]
  folder = tmp_path / 'out'
  (lines,) = folder.glob('texts_*-00000-of-00001')
  before = content(folder)
  done = command('infer', *score, 'SELECTION_HEAD=1', to='out')
  refused(done, folder, before, 'SELECTION_HEAD is 0 there, 1 here')
  done = command('infer', *score, to='out')
  assert done.returncode == 0, done.stderr[-3000:]
  assert 'is there already, of the same settings' in done.stderr
  assert lines.read_bytes() == before[lines.relative_to(folder)]


@pytest.mark.slow
def test_an_evaluation_of_other_settings_is_not_mixed_with_the_first(
  command, tmp_path
):
  few = ('EVAL_STEPS=1', 'EVAL_EXAMPLES=8')
  done = command('eval', *few, to='out')
  assert done.returncode == 0, done.stderr[-3000:]
  folder = tmp_path / 'out'
  before = content(folder)
  result = json.loads((folder / 'evaluation.json').read_text())
  assert set(result) >= {'variable_assignment'}
  done = command('eval', *few, 'SELECTION_HEAD=1', to='out')
  refused(done, folder, before, 'SELECTION_HEAD is 0 there, 1 here')
