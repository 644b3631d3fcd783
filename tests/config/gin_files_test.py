"""Every gin file parses, in a run that could start."""

import os
import subprocess
import sys

import pytest

from selective_t5x.config import files as config_files

GIN = config_files.gin_dir()
FILES = sorted(str(p.relative_to(GIN)) for p in GIN.rglob('*.gin'))
# What a file needs before it, and after it, to be a whole configuration.
_EXPERIMENT = 'experiments/wikipedia_sample_lm.gin'
_FINE_TUNING = ('experiments/t5_squad.gin', 'experiments/t5_wmt_ende.gin')
_INITIAL = "--gin.INITIAL_CHECKPOINT_PATH='runs/checkpoint_1'"
_EVALUATE = (
  "--gin.CHECKPOINT_PATH='runs/checkpoint_1'",
  "--gin.EVAL_OUTPUT_DIR='out'",
)
_INFER = (
  "--gin.CHECKPOINT_PATH='runs/checkpoint_1'",
  "--gin.INFER_OUTPUT_DIR='out'",
)


def test_no_init_file_and_every_folder_is_known():
  assert not list(GIN.rglob('__init__.py'))
  assert {path.split('/')[0] for path in FILES} <= {
    'architectures',
    'attention',
    'models',
    'optimizers',
    'pruning',
    'runs',
    'experiments',
    'test',
  }


@pytest.mark.parametrize('path', FILES)
def test_headers_say_what_how_and_with_what(path):
  text = (GIN / path).read_text()
  header = text.split('\n\n')[0] + text.split('from __gin__')[0]
  assert header.startswith('# ')
  assert any(
    word in header for word in ('Required', 'Provides', 'Overrides', 'Use ')
  )


def test_every_file_parses_in_a_configuration(tmp_path):
  # One process for all: starting TensorFlow takes longer than the parsing.
  code = f"""
import gin
import selective_t5x
from selective_t5x.config import files as config_files
from t5x.eval import evaluate
from t5x.infer import infer
from t5x.train import train
gin.register(train, '__main__')
gin.register(evaluate, '__main__')
gin.register(infer, '__main__')
gin.add_config_file_search_path(str(config_files.search_path()))
for path in {FILES!r}:
  files = ['gin/{_EXPERIMENT}', f'gin/{{path}}']
  if path.startswith('experiments/'):
    files = files[1:]
  if path == 'runs/pretrain.gin':  # asks for what an experiment then sets
    files = files[::-1]
  gin.clear_config()
  bindings = ["MODEL_DIR = 'x'"]
  if path in ('runs/eval.gin', 'runs/downstream.gin'):
    bindings += ["CHECKPOINT_PATH = 'x'", "EVAL_OUTPUT_DIR = 'x'"]
  if path in ('runs/infer.gin', 'runs/infer_file.gin'):
    bindings += ["CHECKPOINT_PATH = 'x'", "INFER_OUTPUT_DIR = 'x'"]
  if path == 'runs/infer_file.gin':
    bindings += ["INPUT_FILE = 'x'"]
  if path in ('runs/finetune.gin', *{_FINE_TUNING!r}):
    bindings += ["INITIAL_CHECKPOINT_PATH = 'x'"]
  if path == 'attention/fade_in.gin':
    bindings += ['FADE_START = 0']
  if path.startswith('pruning/'):
    bindings += ['CACHE_BUDGETS = 2']
  gin.parse_config_files_and_bindings(files, bindings)
  text = gin.config_str()
  assert 'total_steps = %TRAIN_STEPS' in text, path
  print('parsed', path)
"""
  run = subprocess.run(
    [sys.executable, '-c', code],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
    env=os.environ,
  )
  assert run.returncode == 0, run.stderr[-3000:]
  assert run.stdout.count('parsed') == len(FILES)


@pytest.mark.slow
@pytest.mark.parametrize(
  'args',
  [
    (
      f'--gin_file=gin/{path}',
      "--gin.MODEL_DIR='x'",
      '--run_mode=train',
      *([_INITIAL] if path in _FINE_TUNING else []),
    )
    for path in FILES
    if path.startswith('experiments/')
  ]
  + [
    (
      f'--gin_file=gin/{_EXPERIMENT}',
      f'--gin_file=gin/runs/{name}.gin',
      '--run_mode=eval',
      *_EVALUATE,
    )
    for name in ('eval', 'downstream')
  ]
  + [
    (
      f'--gin_file=gin/{_EXPERIMENT}',
      '--gin_file=gin/attention/selective.gin',
      '--gin_file=gin/pruning/selective.gin',
      '--gin_file=gin/runs/eval.gin',
      '--gin.CACHE_BUDGETS=8',
      '--run_mode=eval',
      *_EVALUATE,
    ),
  ]
  + [
    (
      f'--gin_file=gin/{_EXPERIMENT}',
      '--gin_file=gin/runs/infer.gin',
      '--run_mode=infer',
      *_INFER,
    ),
    (
      f'--gin_file=gin/{_EXPERIMENT}',
      '--gin_file=gin/optimizers/adafactor.gin',
      '--gin_file=gin/runs/finetune.gin',
      '--run_mode=train',
      _INITIAL,
      "--gin.MODEL_DIR='x'",
    ),
  ],
)
def test_whole_configurations_pass_the_command_lines_checks(
  args, commands, tmp_path
):
  run = commands.run('selective_t5x.main', [*args, '--dry_run'], tmp_path)
  assert run.returncode == 0, run.stderr[-3000:]
  assert not os.listdir(tmp_path)
