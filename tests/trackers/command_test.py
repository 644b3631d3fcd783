"""The command of docs/trackers.md, and its mistakes; the real T5X too."""

import importlib.util
import json
import pathlib
import shlex

import pytest

from tests.support import real_t5x

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / 'docs/trackers.md').read_text()
_TINY = ('--gin_file=gin/test/tiny.gin', '--gin.TRAIN_STEPS=4')


def _command(folder):
  """Returns the arguments of the page's command, for a run in a folder."""
  text = PAGE.split('```sh\n')[1].split('```')[0]
  python, dash_m, module, *words = shlex.split(text.replace('\\\n', ''))
  assert (python, dash_m) == ('python', '-m')
  words = [word for word in words if 'MODEL_DIR' not in word]
  return module, [*words, *_TINY, f'--gin.MODEL_DIR={str(folder)!r}']


def _check(folder):
  rows = [
    json.loads(line)
    for line in (folder / 'trackers/metrics.jsonl').read_text().splitlines()
  ]
  names = set().union(*rows)
  assert 'train/loss' in names
  assert any(name.startswith('training_eval/') for name in names)
  parameters = json.loads((folder / 'trackers/parameters.json').read_text())
  assert parameters['seed'] == 0 and parameters['settings']['TRAIN_STEPS'] == 4
  assert 'TRACKERS' in parameters['gin']
  assert 'SELECTION_HEAD' in parameters['operative_gin']
  assert list((folder / 'trackers/tensorboard').glob('events.out.tfevents.*'))
  return parameters


def test_the_page_s_command_runs(commands, tmp_path):
  module, words = _command(tmp_path / 'run')
  done = commands.run(module, words, tmp_path)
  assert done.returncode == 0, done.stderr[-3000:]
  assert 'nothing in this run' not in done.stderr
  assert _check(tmp_path / 'run')['run_mode'] == 'train'
  # Trackers may go when the run is resumed.
  plain = [w for w in words if 'trackers' not in w]
  plain = [w.replace('TRAIN_STEPS=4', 'TRAIN_STEPS=5') for w in plain]
  resumed = commands.run(module, plain, tmp_path)
  assert resumed.returncode == 0, resumed.stderr[-3000:]


@pytest.mark.skipif(
  importlib.util.find_spec('wandb') is not None, reason='wandb is installed'
)
def test_a_missing_package_is_found_before_anything_runs(commands, tmp_path):
  module, words = _command(tmp_path / 'run')
  done = commands.run(
    module, [*words, '--gin.TRACKERS=[@trackers.WandB()]'], tmp_path
  )
  assert done.returncode == 2
  last = done.stderr.strip().splitlines()[-1]
  assert 'the package wandb is not installed: pip install' in last
  assert not list((tmp_path / 'run').glob('checkpoint_*'))


@pytest.mark.slow
def test_the_real_t5x_has_trackers_too(tmp_path):
  real_t5x.skip_without('t5x.train')
  module, words = _command(tmp_path / 'run')
  done = real_t5x.python('-m', module, *words)
  assert done.returncode == 0, done.stderr[-3000:]
  assert _check(tmp_path / 'run')['engine'] == 't5x'
