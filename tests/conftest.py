"""Shared test set-up: the embedded engine, a private cache, quiet logs."""

import gc
import os
import pathlib
import shutil
import tempfile

import pytest

# Set before anything imports t5x: the suite tests the embedded engine even
# where the real T5X is on the path. Tests of the real one say so themselves.
os.environ['SELECTIVE_T5X_ENGINE'] = 'embedded'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

# Compiling takes most of the tests' time, and the next run compiles the same
# programs again: they are kept, for subprocesses too.
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR',
  str(pathlib.Path(__file__).resolve().parents[1] / '.pytest_cache' / 'jax'),
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

# Fast code for tiny arrays would take longer to compile than the test to run.
os.environ.setdefault(
  'XLA_FLAGS',
  '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false',
)

import jaxtyping

import selective_t5x  # noqa: F401
from tests.support.commands import Commands

# Shapes and dtypes in the signatures of the maths are checked in every call.
jaxtyping.install_import_hook(
  [
    f'selective_t5x.{name}'
    for name in (
      'attention.masks',
      'attention.memory',
      'attention.reference',
      'attention.selection',
      'attention.steps',
      'attention.variants.differential',
      'attention.variants.forgetting',
      'attention.variants.stick_breaking',
      'attention.variants.temperature',
      'pruning.eviction',
      'pruning.policy',
      'pruning.whole_rows',
    )
  ],
  'beartype.beartype',
)

_PROGRAMS_MAX_BYTES = 2**30


_TEMPORARY = pytest.StashKey[str]()


def pytest_configure(config):
  """Makes a folder for temporary files, of subprocesses too.

  TensorFlow writes a file for every function that a pipeline maps, and leaves
  it where a process is forked or killed. pytest's own folders stay where they
  are, so that a failed test's can be read.
  """
  if hasattr(config, 'workerinput'):  # The first process does it.
    return
  os.environ.setdefault('PYTEST_DEBUG_TEMPROOT', tempfile.gettempdir())
  folder = config.stash[_TEMPORARY] = tempfile.mkdtemp(prefix='tests_')
  os.environ['TMPDIR'] = tempfile.tempdir = folder


def pytest_unconfigure(config):
  """Removes it."""
  folder = config.stash.get(_TEMPORARY, None)
  if folder:
    shutil.rmtree(folder, ignore_errors=True)


def pytest_sessionstart(session):
  """Empties the cache of compiled programs once it has outgrown its bound."""
  if hasattr(session.config, 'workerinput'):  # The first process does it.
    return
  folder = pathlib.Path(__file__).resolve().parents[1] / '.pytest_cache' / 'jax'
  sizes = [path.stat().st_size for path in folder.rglob('*')]
  if sum(sizes) > _PROGRAMS_MAX_BYTES:
    shutil.rmtree(folder)


def pytest_collection_modifyitems(items):
  """Runs modules that start processes first.

  They have few tests that take long, and at the end one would leave a worker
  alone.
  """
  starting = {item.path for item in items if 'commands' in item.fixturenames}
  items.sort(key=lambda item: item.path not in starting)


def pytest_collection_finish(session):
  """Leaves what is imported by now out of every later garbage collection.

  These are millions of objects that live as long as the process.
  """
  del session
  gc.collect()
  gc.freeze()


@pytest.fixture(scope='session', autouse=True)
def _vocabulary_cache(tmp_path_factory):
  """Keeps what tests convert and train out of the user's cache.

  CI and `make test` may name a folder that lasts, to train vocabularies once.
  """
  if 'SELECTIVE_T5X_CACHE' not in os.environ:
    os.environ['SELECTIVE_T5X_CACHE'] = str(tmp_path_factory.mktemp('cache'))


@pytest.fixture(scope='module', autouse=True)
def _empty_gin_configuration():
  """Starts every module without what an earlier one parsed or locked."""
  import gin

  gin.clear_config()


@pytest.fixture(scope='session')
def commands():
  """Runs commands without paying for their imports: `support.commands`."""
  made = Commands()
  yield made
  made.close()


@pytest.fixture(scope='session')
def selective_run(commands, tmp_path_factory):
  """The folder of a run of one step: two layers, rows of 16 tokens and more."""
  folder = tmp_path_factory.mktemp('runs') / 'selective'
  done = commands.run(
    'selective_t5x.main',
    [
      '--run_mode=train',
      '--gin_file=gin/experiments/variable_assignment.gin',
      '--gin_file=gin/attention/selective.gin',
      '--gin_file=gin/test/tiny.gin',
      '--gin.NUM_LAYERS=2',
      '--gin.TRAIN_STEPS=1',
      '--gin.WARMUP_STEPS=0',
      '--gin.EVAL_PERIOD=0',
      f'--gin.MODEL_DIR={str(folder)!r}',
    ],
    pathlib.Path.cwd(),
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return folder


@pytest.fixture
def float64():
  """Arrays of float64 inside a test."""
  import jax

  with jax.enable_x64(True):
    yield
