import importlib.machinery
import os
import subprocess
import sys

import pytest

from selective_t5x import engine_finder

ENGINE_DIR = str(engine_finder._ENGINE_DIR)


@pytest.fixture
def fake_t5x(tmp_path):
  """A folder with another package of the name t5x in it."""
  package = tmp_path / 't5x'
  package.mkdir()
  (package / '__init__.py').write_text("name = 'another'\n")
  return tmp_path


def run(code, *, engine='', path=''):
  """Runs Python code in a fresh process and returns it finished."""
  here = os.pathsep.join(filter(None, [str(path), *sys.path]))
  environment = os.environ | {
    engine_finder.ENGINE_VARIABLE: engine,
    'PYTHONPATH': here,
  }
  return subprocess.run(
    [sys.executable, '-c', code],
    env=environment,
    # Python looks into the current folder first, and t5x.py is in the root.
    cwd=path or None,
    capture_output=True,
    text=True,
  )


def output(code, **kwargs):
  done = run(code, **kwargs)
  assert done.returncode == 0, done.stderr
  return done.stdout.strip()


WHICH = (
  'import selective_t5x, t5x, os\n'
  'print(selective_t5x.engine_name(), os.path.dirname(t5x.__file__))'
)


def test_embedded_engine_where_it_is_forced():
  assert output(WHICH, engine='embedded') == f'embedded {ENGINE_DIR}'


def test_the_modules_that_t5x_imports_need_no_import_of_their_own():
  code = (
    'import selective_t5x, t5x\n'
    'print(t5x.checkpointing is t5x.checkpoints, t5x.losses.__name__)\n'
    'print(hasattr(t5x, "util"))\n'
  )
  printed = output(code, engine='embedded').splitlines()
  assert printed[-2:] == ['True t5x.losses', 'False']


def test_forced_embedded_engine_beats_another_t5x(fake_t5x):
  result = output(WHICH, engine='embedded', path=fake_t5x)
  assert result == f'embedded {ENGINE_DIR}'


@pytest.mark.parametrize('engine', ['', 't5x'])
def test_another_t5x_is_used_where_there_is_one(fake_t5x, engine):
  result = output(WHICH, engine=engine, path=fake_t5x)
  assert result == f't5x {fake_t5x / "t5x"}'


def test_another_t5x_that_is_imported_already_stays(fake_t5x):
  code = 'import t5x\n' + WHICH
  assert output(code, path=fake_t5x).startswith('t5x ')


def test_forcing_embedded_after_another_t5x_is_an_error(fake_t5x):
  code = 'import t5x\nimport selective_t5x\nimport t5x.losses'
  done = run(code, engine='embedded', path=fake_t5x)
  assert done.returncode != 0
  assert 'import selective_t5x first' in done.stderr


without_t5x = pytest.mark.skipif(
  any(
    (spec := importlib.machinery.PathFinder.find_spec('t5x', [entry]))
    and spec.submodule_search_locations
    and spec.origin
    for entry in sys.path
  ),
  reason='the real T5X is here',
)


@without_t5x
def test_embedded_engine_where_there_is_no_other():
  assert output(WHICH) == f'embedded {ENGINE_DIR}'


@without_t5x
def test_forced_t5x_that_is_missing_says_how_to_get_it():
  done = run(WHICH, engine='t5x')
  assert done.returncode != 0
  assert 'pip install "selective_t5x[t5x]"' in done.stderr


def test_unknown_engine():
  done = run(WHICH, engine='jax')
  assert done.returncode != 0
  assert 'expected "embedded" or "t5x"' in done.stderr


def test_engine_has_no_second_name():
  done = run('import selective_t5x.engine', engine='embedded')
  assert done.returncode != 0
  assert 'import t5x' in done.stderr


def test_only_the_name_t5x_is_taken():
  code = (
    'import importlib.util, selective_t5x\n'
    "print(importlib.util.find_spec('t5xx'), importlib.util.find_spec('t5'))"
  )
  assert output(code, engine='embedded').startswith('None ')
  assert 'engine' not in output(code, engine='embedded')


def test_importing_the_package_imports_neither_jax_nor_tensorflow():
  code = (
    'import selective_t5x, sys\n'
    "print({'jax', 'tensorflow', 't5x', 'numpy'} & set(sys.modules))"
  )
  assert output(code, engine='embedded') == 'set()'


def test_objects_of_the_engine_pickle_under_the_name_t5x():
  code = (
    'import selective_t5x, pickle, sys\n'
    'from t5x import losses\n'
    'factor = losses.SpecialLossNormalizingFactor.NUM_REAL_TARGET_TOKENS\n'
    'saved = pickle.dumps(factor)\n'
    'assert pickle.loads(saved) is factor\n'
    "assert b't5x.losses' in saved and b'engine' not in saved\n"
    "print([m for m in sys.modules if m.startswith('selective_t5x.engine.')])"
  )
  assert output(code, engine='embedded') == '[]'


def test_files_of_the_engine_are_found_by_importlib_resources():
  code = (
    'import selective_t5x, importlib.resources\n'
    "print((importlib.resources.files('t5x') / 'train.py').is_file())"
  )
  assert output(code, engine='embedded') == 'True'


def test_a_plain_folder_of_that_name_is_not_t5x(tmp_path):
  (tmp_path / 't5x').mkdir()
  (tmp_path / 't5x' / 'README.md').write_text('a clone')
  assert output(WHICH, path=tmp_path) == f'embedded {ENGINE_DIR}'


# Where nothing has imported selective_t5x, t5x.py of the suite is found.
ALONE = 'import t5x, os, sys; print(os.path.dirname(t5x.__file__))'


@without_t5x
def test_t5x_alone_is_the_embedded_engine():
  assert output(ALONE) == ENGINE_DIR
  assert output(ALONE, engine='embedded') == ENGINE_DIR
  code = 'import t5x.losses, selective_t5x, t5x; print(len(t5x.__path__))'
  assert output(code) == '2'


def test_t5x_alone_gives_way_to_another_before_and_after(fake_t5x):
  theirs = str(fake_t5x / 't5x')
  assert output(ALONE, path=fake_t5x) == theirs
  after = f'import sys; sys.path.append({str(fake_t5x)!r})\n'
  assert output(after + ALONE) == theirs
  assert output(after + WHICH) == f't5x {theirs}'
  assert output(after + ALONE, engine='embedded') == ENGINE_DIR


def test_t5x_alone_gives_way_to_one_that_a_finder_finds(fake_t5x):
  # As pip installs a checkout with -e.
  finder = (
    'import sys, importlib.util as u\n'
    'class Finder:\n'
    '  @staticmethod\n'
    '  def find_spec(name, path=None, target=None):\n'
    f'    folder = {str(fake_t5x / "t5x")!r}\n'
    "    if name == 't5x':\n"
    '      return u.spec_from_file_location(\n'
    '        name, folder + "/__init__.py",\n'
    '        submodule_search_locations=[folder])\n'
    'sys.meta_path.append(Finder)\n'
  )
  assert output(finder + ALONE) == str(fake_t5x / 't5x')


def test_t5x_alone_says_why_there_is_none():
  done = run(ALONE, engine='jax')
  assert done.returncode != 0
  assert 'expected "embedded" or "t5x"' in done.stderr


@without_t5x
@pytest.mark.slow
@pytest.mark.parametrize('mode', ['train', 'eval', 'infer', 'main'])
def test_t5xs_commands_are_the_suites(mode, tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', f't5x.{mode}', '--gin_file=x.gin']
    + (['--run_mode=train'] if mode == 'main' else []),
    cwd=tmp_path,
    env=os.environ
    | {
      engine_finder.ENGINE_VARIABLE: '',
      'PYTHONPATH': os.pathsep.join(filter(None, sys.path)),
    },
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2, done.stderr
  assert 'error: --gin_file=x.gin: no such file' in done.stderr
