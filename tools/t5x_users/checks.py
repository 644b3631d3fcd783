"""The checks of each repository; each runs in a process of its own."""

import contextlib
import importlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence

import numpy as np

Result = tuple[str, bool, str]  # (what, whether it passed, why not)

STEPS = 2


class _TestData:
  """A pytest plugin that mends where tests look for their data.

  prompt_tuning/train/train_test.py names a folder that no commit has.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder

  def pytest_collection_modifyitems(self, items):
    """Replaces a TEST_DATA that is no folder by the one that is."""
    for item in items:
      module = item.module
      if not os.path.isdir(getattr(module, 'TEST_DATA', os.curdir)):
        module.TEST_DATA = str(self._folder)


class _Counter:
  """A pytest plugin that keeps the outcome of every test."""

  def __init__(self):
    self.outcomes: dict[str, tuple[str, str]] = {}

  def pytest_runtest_logreport(self, report):
    """Keeps the worst of set-up, call and tear-down."""
    if report.failed or report.nodeid not in self.outcomes:
      crash = getattr(report.longrepr, 'reprcrash', None)
      why = crash.message.splitlines()[0] if crash and crash.message else ''
      self.outcomes[report.nodeid] = report.outcome, why

  def pytest_collectreport(self, report):
    """Keeps a file that cannot be imported."""
    if report.failed:
      lines = str(report.longrepr).strip().splitlines()
      errors = [line for line in lines if line.startswith('E ')]
      why = (errors or lines)[-1].removeprefix('E').strip()
      self.outcomes[report.nodeid] = 'failed', why


def tests(
  checkout: pathlib.Path, patterns: Sequence[str], data: str = ''
) -> Iterator[Result]:
  """Runs the test files of a checkout that match a pattern.

  Args:
    checkout: the folder of the checkout.
    patterns: patterns of test files in it.
    data: the folder in it for tests whose TEST_DATA is no folder.
  """
  import gin
  import pytest
  from absl import flags
  from absl.testing import absltest

  _provide_entry_points()
  gin.add_config_file_search_path(str(checkout))
  files = sorted({str(f) for p in patterns for f in checkout.glob(p)})
  if not files:
    yield f'{checkout}: no {", ".join(patterns)}', False, 'another checkout?'
    return
  os.environ.setdefault('TEST_SRCDIR', str(checkout))
  absltest.get_default_test_tmpdir()
  flags.FLAGS(['tests'], known_only=True)
  counter = _Counter()
  options = ['-q', '--tb=no', '--no-header', '-p', 'no:cacheprovider']
  options += ['--import-mode=importlib', '--continue-on-collection-errors']
  options += ['-c', os.devnull, '--rootdir', str(checkout)]
  # gin looks for included files here before it asks Python's packages, of which
  # it cannot read those without an __init__.py.
  with contextlib.chdir(checkout):
    pytest.main(
      [*options, *files], plugins=[counter, _TestData(checkout / data)]
    )
  for test, (outcome, why) in counter.outcomes.items():
    if outcome != 'skipped':
      yield test, outcome == 'passed', why


def imported(modules: Sequence[str]) -> Iterator[Result]:
  """Imports modules."""
  for module in modules:
    try:
      importlib.import_module(module)
    except Exception as error:
      yield f'import {module}', False, _line(error)
    else:
      yield f'import {module}', True, ''


def parsed(checkout: pathlib.Path, runs: Sequence[str]) -> Iterator[Result]:
  """Parses the gin files of runs.

  Args:
    checkout: the folder of the checkout.
    runs: gin files; those of one run are parsed together, with '+' between.
  """
  import gin

  _provide_entry_points()
  gin.add_config_file_search_path(str(checkout))
  for folder in {str((checkout / run).parent) for run in runs}:
    gin.add_config_file_search_path(folder)
  for run in runs:
    gin.clear_config()
    try:
      for name in run.split('+'):
        gin.parse_config_file(str(checkout / name))
    except Exception as error:
      yield run, False, _line(error)
    else:
      yield run, True, ''


def _provide_entry_points() -> None:
  """Gives `__main__` what gin files import from T5X's command line."""
  import gin

  from selective_t5x.config import files
  from t5x import eval as eval_lib
  from t5x import infer, train

  main = sys.modules['__main__']
  main.train, main.infer = train.train, infer.infer
  main.evaluate = eval_lib.evaluate
  for path in files.search_paths('embedded'):
    gin.add_config_file_search_path(path)


def prompt_trained(
  search_paths: Sequence[pathlib.Path], folder: pathlib.Path
) -> Iterator[Result]:
  """Trains flaxformer's T5 1.1, then prompt-tuning's prompt for it, frozen.

  Both are their own gin files, with tools/t5x_users/tiny.gin for the sizes.

  Args:
    search_paths: the checkouts of prompt-tuning and flaxformer.
    folder: a new folder for both runs.
  """
  t5, prompt = folder / 't5', folder / 'prompt'
  what = 'trains a prompt for a frozen T5'
  problem = _train(
    search_paths,
    t5,
    STEPS,
    'flaxformer/t5x/configs/t5/models/t5_1_1_base.gin',
    't5x/configs/runs/pretrain.gin',
  ) or _train(
    search_paths,
    prompt,
    2 * STEPS,
    'prompt_tuning/configs/models/t5_1_1_base_prompt.gin',
    'prompt_tuning/configs/runs/prompt_finetune.gin',
    '--gin.PROMPT_LENGTH=3',
    f"--gin.INITIAL_CHECKPOINT_PATH='{t5 / f'checkpoint_{STEPS}'}'",
  )
  if problem:
    yield what, False, problem
    return
  before = _parameters(t5 / f'checkpoint_{STEPS}')
  after = _parameters(prompt / f'checkpoint_{2 * STEPS}')
  added = sorted(set(after) - set(before))
  yield f'{what} ({", ".join(added)})', len(added) == 1, 'expected a prompt'
  changed = [n for n in before if not np.array_equal(before[n], after[n])]
  yield 'the T5 is frozen', not changed, f'{changed[:3]} changed'
  saved = list((prompt / 'numpy_checkpoints').glob('*/*prompt*'))
  yield 'prompts are saved as NumPy arrays', bool(saved), 'no file'


def _train(search_paths, model_dir, steps, *files_and_flags) -> str:
  """Trains with the suite's command line; returns the error, or ''."""
  args = [
    arg if arg.startswith('--') else f'--gin_file={arg}'
    for arg in files_and_flags
  ]
  run = subprocess.run(
    [
      sys.executable,
      '-m',
      'tools.t5x_users.command_line',
      '--run_mode=train',
      f'--gin_search_paths={",".join(map(str, search_paths))},.',
      *args,
      '--gin_file=tools/t5x_users/tiny.gin',
      f"--gin.MODEL_DIR='{model_dir}'",
      f'--gin.TRAIN_STEPS={steps}',
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  if run.returncode == 0:
    return ''
  return (run.stderr.strip().splitlines() or ['no message'])[-1]


def _parameters(checkpoint: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns {name: array} of a checkpoint's parameters."""
  from flax import traverse_util

  from t5x import checkpoints

  arrays = checkpoints.load_t5x_checkpoint(str(checkpoint))['target']
  return {
    name: np.asarray(value)
    for name, value in traverse_util.flatten_dict(arrays, sep='/').items()
  }


def _line(error: Exception) -> str:
  return f'{type(error).__name__}: {error}'.splitlines()[0][:200]
