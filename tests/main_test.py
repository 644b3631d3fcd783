"""Tests of the command line, as a process of its own."""

import importlib.util
import json
import pathlib
import re
import shlex
import subprocess
import sys
from importlib.machinery import PathFinder

import pytest
from absl.testing import flagsaver

from selective_t5x import main
from selective_t5x.cli import failures
from selective_t5x.errors import UserError
from selective_t5x.runs import lock as run_lock

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILE = ('--gin_file=gin/experiments/variable_assignment.gin',)
EXPERIMENT = (
  '--run_mode=train',
  *FILE,
  '--gin_file=gin/test/tiny.gin',
)
FOLDER = '--gin.MODEL_DIR="results"'
HEAVY = {'jax', 'numpy', 't5x', 'tensorflow', 'seqio'}


@pytest.fixture
def command(commands, tmp_path):
  """Runs the command line in an empty folder."""

  def command(*args, python_args=None):
    if python_args is None:
      return commands.run('selective_t5x.main', args, tmp_path)
    return subprocess.run(
      [sys.executable, *python_args, '-m', 'selective_t5x.main', *args],
      cwd=tmp_path,
      capture_output=True,
      text=True,
    )

  return command


@pytest.fixture
def refused_fast(command, tmp_path):
  """Runs a command that is refused at once; returns its one line on stderr."""

  def refused_fast(*args):
    done = command(*args, python_args=['-X', 'importtime'])
    lines = done.stderr.splitlines()
    imports = [x for x in lines if x.startswith('import time:')]
    assert not {x.split('|')[-1].strip() for x in imports} & HEAVY
    (message,) = (x for x in lines if not x.startswith('import time:'))
    assert message.startswith('error: ')
    assert done.returncode == 2
    assert not done.stdout
    assert not list(tmp_path.iterdir())
    return message.removeprefix('error: ')

  return refused_fast


@pytest.fixture
def refused_here(monkeypatch, tmp_path):
  """Does in this process what comes before a run; returns what is wrong."""
  if 'run_mode' not in main.FLAGS:
    main.define_flags()
  monkeypatch.chdir(tmp_path)
  saved = flagsaver.save_flag_values()

  def refused_here(*args):
    with pytest.raises(UserError) as error:
      main.parse_flags(['main', *args])
      with main.make_sessions()[0] as session:
        for name in ('model', 'checkpoint_cfg'):
          session.bound(name)
    assert not list(tmp_path.iterdir())
    return failures.message(error.value)

  yield refused_here
  flagsaver.restore_flag_values(saved)


# Seen before anything heavy is imported.


@pytest.mark.parametrize(
  'args, expected',
  [
    ((), 'no --run_mode: expected one of train, eval'),
    (EXPERIMENT, 'no value for MODEL_DIR (required at gin/runs/pretrain.gin:'),
    (
      (*EXPERIMENT, FOLDER, '--gin.BATCH_SZE=4'),
      '--gin.BATCH_SZE: no loaded gin file reads a macro of this name; '
      'nearest: BATCH_SIZE',
    ),
  ],
)
def test_refused_before_heavy_imports(refused_fast, args, expected):
  assert expected in refused_fast(*args)


@pytest.mark.parametrize(
  'args, expected',
  [
    (('--run_mode=trian',), '--run_mode=trian: no such mode'),
    (('--run_mode=export',), 'export: T5X has it, this version not'),
    (('--run_mode=train',), 'no --gin_file'),
    (('--run_mod=train',), '--run_mod: no such flag; nearest: --run_mode'),
    (('--gin_fil=a',), '--gin_fil: no such flag; nearest: --gin_file'),
    (('--dry_run=perhaps',), 'flag --dry_run=perhaps'),
    (('run_mode=train',), "unexpected argument 'run_mode=train'"),
    ((*EXPERIMENT, 'more'), "unexpected argument 'more'"),
    ((*EXPERIMENT, '--gin.X'), '--gin.X: expected --gin.X=VALUE'),
    (
      ('--run_mode=train', '--gin_file=gin/experiments/variable_asignment.gin'),
      'nearest: gin/experiments/variable_assignment.gin',
    ),
    (
      (*EXPERIMENT, '--gin.MODEL_DIR=/tmp/x'),
      '''a string needs quotes inside quotes: --gin.MODEL_DIR="'/tmp/x'"''',
    ),
    (
      (*EXPERIMENT, FOLDER, '--gin_bindings=BATCH_SZE=4'),
      'nearest: BATCH_SIZE',
    ),
    (('--run_mode=precompile', *FILE), 'no --topology'),
    (
      ('--run_mode=precompile', '--topology=h100:9', *FILE),
      '--topology=h100:9: no such machine, expected h100:N',
    ),
    (
      ('--run_mode=precompile', '--topology=v5e:16x17', *FILE),
      '--topology=v5e:16x17: no such TPU slice',
    ),
    (
      ('--run_mode=train', '--topology=v5e:16x16', *FILE),
      '--topology is for --run_mode=precompile',
    ),
  ],
)
def test_flags_and_files_that_cannot_be(refused_here, args, expected):
  assert expected in refused_here(*args)


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is not None, reason='libtpu is here'
)
def test_without_the_tpu_compiler_the_extra_is_named(refused_here):
  message = refused_here('--run_mode=precompile', '--topology=v5e:16x16', *FILE)
  assert 'libtpu' in message and 'selective_t5x[aot]' in message


@pytest.mark.skipif(
  importlib.util.find_spec('jax_cuda12_plugin') is not None,
  reason='the plugin for CUDA is here',
)
def test_without_the_gpu_compiler_the_extra_is_named(refused_here):
  message = refused_here('--run_mode=precompile', '--topology=h100:8', *FILE)
  assert 'make install-cuda' in message and 'selective_t5x[cuda]' in message


def test_files_of_the_user_come_first(refused_here, tmp_path):
  folder = tmp_path.parent / f'{tmp_path.name}_own'
  (folder / 'gin/runs').mkdir(parents=True)
  (folder / 'gin/runs/pretrain.gin').write_text('OWN = %gin.REQUIRED\n')
  message = refused_here(
    '--run_mode=train',
    '--gin_file=gin/runs/pretrain.gin',
    f'--gin_search_paths=/nonexistent,{folder}',
  )
  assert 'no value for OWN' in message


def test_missing_include_names_the_file_and_line(refused_here, tmp_path):
  file = tmp_path.parent / f'{tmp_path.name}.gin'
  file.write_text("\ninclude 'gin/runs/pretrian.gin'\n")
  message = refused_here('--run_mode=train', f'--gin_file={file}')
  assert f"{file}:2: include 'gin/runs/pretrian.gin'" in message
  assert 'nearest: gin/runs/pretrain.gin' in message


@pytest.mark.parametrize(
  'engine, expected',
  [
    ('t5x', 'there is none here. T5X is not on PyPI: pip install'),
    ('jax', 'expected "embedded" or "t5x"'),
  ],
)
def test_engine_that_is_not_there(refused_fast, monkeypatch, engine, expected):
  if engine == 't5x' and PathFinder.find_spec('t5x'):
    pytest.skip('the real T5X is here')
  monkeypatch.setenv('SELECTIVE_T5X_ENGINE', engine)
  assert expected in refused_fast(*EXPERIMENT, FOLDER)


@pytest.mark.parametrize('flag', ['--help', '-h', '--helpshort'])
def test_help(command, flag):
  done = command(flag, python_args=['-X', 'importtime'])
  imports = {x.split('|')[-1].strip() for x in done.stderr.splitlines()}
  assert done.returncode == 0
  assert not imports & HEAVY
  assert 'Exit codes:' in done.stdout
  for flag in ('run_mode', 'gin_file', 'gin_bindings', 'dry_run'):
    assert f'--{flag}' in done.stdout or f'--[no]{flag}' in done.stdout


# With the engine.

OWN_TASK = """
import seqio


def examples(split, shuffle_files, seed=None):
  raise AssertionError('a dry run read data')


seqio.TaskRegistry.add(
  'own_task',
  source=seqio.FunctionDataSource(examples, splits=['train']),
  preprocessors=[],
  output_features={'targets': seqio.Feature(seqio.ByteVocabulary())},
)
"""


def test_budgets_of_another_model_are_refused(refused_here):
  message = refused_here(
    *EXPERIMENT,
    '--gin_file=gin/attention/baseline.gin',
    '--gin_file=gin/pruning/window.gin',
    '--gin.CACHE_BUDGETS=[4, 8]',
    FOLDER,
  )
  assert 'has 2 budgets, [4, 8], but the decoder has 1 layer' in message


def test_dry_run_prints_what_would_run(command, tmp_path):
  (tmp_path / 'own_tasks.py').write_text(OWN_TASK)
  (tmp_path / 'own.gin').write_text('\nBATCH_SZE = 3\n')
  done = command(
    *EXPERIMENT,
    '--gin_file=own.gin',
    '--gin_file=gin/attention/selective.gin',
    '--dry_run',
    FOLDER,
    '--gin.BATCH_SIZE=6',
    '--gin.train/utils.DatasetConfig.batch_size=2',
    '--gin.MIXTURE_OR_TASK_NAME="own_task"',
    '--gin.MIXTURE_OR_TASK_MODULE="own_tasks"',
  )
  assert done.returncode == 0, done.stderr
  for line in (
    'ATTENTION = @attention.selective_attention',
    'BATCH_SIZE = 6',
    'train/utils.DatasetConfig.batch_size = 2',
    'train_eval/utils.DatasetConfig.batch_size = %BATCH_SIZE',
    "MIXTURE_OR_TASK_NAME = 'own_task'",
    'TRAIN_STEPS = 4',
  ):
    assert line in done.stdout.splitlines()
  assert f"'{tmp_path}/results'" in done.stdout
  assert 'oneDNN' not in done.stderr and 'cuda' not in done.stderr.lower()
  assert not (tmp_path / 'results').exists()
  (warning,) = (x for x in done.stderr.splitlines() if 'in this run' in x)
  assert warning.endswith(
    'own.gin:2: BATCH_SZE: nothing in this run can read it; nearest: BATCH_SIZE'
  )


@pytest.mark.parametrize(
  'binding, expected',
  [
    ('BATCH_SIZE="four"', "--gin.BATCH_SIZE: 'four' is not of type int"),
    (
      'utils.SaveCheckpointConfig.dtype="int8"',
      "`SaveCheckpointConfig.dtype` must be one of None, 'float32'",
    ),
  ],
)
def test_refused_by_the_engine(refused_here, binding, expected):
  assert expected in refused_here(*EXPERIMENT, FOLDER, f'--gin.{binding}')


EXAMPLES = re.findall(
  r'^\$ python -m selective_t5x.main (.*)\nerror: (.*)$',
  (ROOT / 'docs/command_line.md').read_text(),
  re.MULTILINE,
)


@pytest.mark.parametrize('args, expected', EXAMPLES)
def test_refusals_shown_in_the_docs(refused_here, args, expected):
  assert refused_here(*shlex.split(args)) == expected


def test_docs_show_refusals():
  assert len(EXAMPLES) >= 3


@pytest.mark.slow
def test_commands_of_the_docs_leave_their_records(command, tmp_path):
  text = (ROOT / 'docs/command_line.md').read_text()
  train, evaluate = (
    shlex.split(block.replace('\\\n', ''))[3:]
    for block in re.findall(r'```sh\n(.*?)```', text, re.DOTALL)
  )
  (tmp_path / 'own.gin').write_text('BATCH_SZE = 3\nCHECKPOINT_PERIOD = 3\n')
  done = command(*train, '--gin_file=own.gin')
  assert done.returncode == 0, done.stderr
  assert 'engine embedded, selective_t5x' in done.stderr
  (warning,) = (x for x in done.stderr.splitlines() if 'in this run' in x)
  assert 'own.gin:1: BATCH_SZE: nothing in this run read it; near' in warning
  folder = tmp_path / 'results/tiny'
  (run,) = json.loads((folder / 'run.json').read_text())['runs']
  assert run['run_mode'] == 'train'
  assert run['seed'] == 0
  assert run['peak_rss_bytes'] > 2**27
  operative = (folder / 'operative_config.gin').read_text()
  assert f"'{folder}'" in operative

  # What does not fit the folder is refused, and what is there stays.
  saved = {f: f.read_bytes() for f in folder.rglob('*') if f.is_file()}
  done = command(*train, '--gin.NUM_LAYERS=2')
  assert done.returncode == 2, done.stderr
  assert 'NUM_LAYERS is 1 there, 2 here' in done.stderr.splitlines()[-1]
  with run_lock.held(folder):
    done = command(*train)
    assert done.returncode == 2, done.stderr
    assert 'is using the folder' in done.stderr.splitlines()[-1]
  assert saved == {f: f.read_bytes() for f in folder.rglob('*') if f.is_file()}

  # The saved configuration is one to run again, in another mode too.
  done = command(*evaluate)
  assert done.returncode == 0, done.stderr
  assert 'in this run' not in done.stderr
  record = (tmp_path / 'results/tiny_eval/run.json').read_text()
  assert json.loads(record)['runs'][0]['run_mode'] == 'eval'
  assert (tmp_path / 'results/tiny_eval/evaluation.json').exists()
  assert 'variable_assignment: exact_match' in done.stdout

  # A checkpoint means nothing with another vocabulary.
  more_values = '--gin.variable_assignment.Difficulty.num_values=12'
  for args in ((*train, '--accept_config_change'), evaluate):
    done = command(*args, more_values)
    assert done.returncode == 2, done.stderr
    assert 'trained with another vocabulary' in done.stderr.splitlines()[-1]
