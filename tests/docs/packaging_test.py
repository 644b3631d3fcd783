"""Tests of what is installed, and of a wheel that is built from the tree."""

import configparser
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata

import pytest

from selective_t5x.config import files as config_files

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_gin_folder_is_no_package():
  # From the root, `import gin` would load it instead of gin-config.
  assert not list((ROOT / 'gin').rglob('*.py'))


def test_import_gin_is_gin_config_in_the_root():
  code = 'import gin, pathlib; print(pathlib.Path(gin.__file__).parent)'
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    check=True,
  )
  (installed,) = (
    pathlib.Path(f.locate()).parent
    for f in metadata.files('gin-config')
    if f.as_posix() == 'gin/__init__.py'
  )
  assert pathlib.Path(done.stdout.strip()) == installed


def test_every_gin_file_is_below_the_search_path():
  assert config_files.gin_dir().is_dir()
  assert (config_files.search_path() / 'gin/runs/pretrain.gin').is_file()


def test_one_owner_of_the_packages_that_two_distributions_hold():
  # seqio and seqio-nightly own the same files, and so do tfds-nightly and
  # tensorflow-datasets: what is imported is what was installed last.
  assert metadata.version('seqio-nightly')
  with pytest.raises(metadata.PackageNotFoundError):
    metadata.version('seqio')
  import tensorflow_datasets as tfds

  assert tfds.__version__ == metadata.version('tensorflow-datasets') == '4.9.10'


def test_the_makefile_installs_extras_by_names_that_any_pip_knows():
  """An underscore in a name makes older versions of pip warn, and go on."""
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  extras = set(setup['options.extras_require'])
  named = re.findall(r"'\.\[(.*)\]'", (ROOT / 'Makefile').read_text())
  wanted = {extra for names in named for extra in names.split(',')}
  assert wanted and wanted <= extras, wanted - extras
  assert not [extra for extra in extras if '_' in extra]


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """A wheel, built from a copy so that the tree stays as it is."""
  pytest.importorskip('wheel')
  folder = tmp_path_factory.mktemp('wheel')
  tracked = subprocess.run(
    ['git', 'ls-files', '--cached', '--others', '--exclude-standard', '-z'],
    cwd=ROOT,
    capture_output=True,
    text=True,
  ).stdout.split('\0')
  for name in filter(None, tracked or ()):
    if (ROOT / name).is_file():
      target = folder / 'tree' / name
      target.parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(ROOT / name, target)
  subprocess.run(
    [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation']
    + ['--wheel-dir', str(folder), str(folder / 'tree')],
    check=True,
    capture_output=True,
  )
  (built,) = folder.glob('*.whl')
  return built


def test_wheel_holds_the_tree(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())

  def expect(folder, pattern, installed):
    files = list((ROOT / folder).rglob(pattern))
    assert files
    for file in files:
      assert f'{installed}/{file.relative_to(ROOT / folder)}' in names

  expect('selective_t5x', '*.py', 'selective_t5x')
  expect('tasks', '*.py', 'selective_t5x/tasks')
  templates = 'selective_t5x/report/templates'
  expect(templates, '*', templates)
  expect('gin', '*.gin', 'selective_t5x/configs/gin')
  expect('selective_t5x', '*.gin', 'selective_t5x')
  assert 't5x.py' in names
  assert not [n for n in names if n.startswith(('gin/', 'tasks/', 'tests/'))]
  assert not [n for n in names if n.endswith('configs/gin/__init__.py')]


@pytest.mark.slow
def test_wheel_works_from_any_folder(wheel, tmp_path):
  site = tmp_path / 'site'
  zipfile.ZipFile(wheel).extractall(site)
  elsewhere = tmp_path / 'elsewhere'
  elsewhere.mkdir()

  def run(*args):
    return subprocess.run(
      [sys.executable, *args],
      cwd=elsewhere,
      env=os.environ | {'PYTHONPATH': str(site)},
      capture_output=True,
      text=True,
    )

  which = run('-c', 'import selective_t5x; print(selective_t5x.__file__)')
  assert which.stdout.startswith(str(site)), which.stderr
  code = (
    'import selective_t5x.tasks, t5x.train\n'
    'print(selective_t5x.tasks.__file__)\n'
    'print(t5x.train.__file__)'
  )
  done = run('-c', code)
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines() == [
    str(site / 'selective_t5x/tasks/__init__.py'),
    str(site / 'selective_t5x/engine/train.py'),
  ]
  done = run(
    *('-m', 'selective_t5x.main', '--run_mode=train', '--dry_run'),
    '--gin_file=gin/experiments/variable_assignment.gin',
    '--gin_file=gin/attention/selective.gin',
    '--gin.MODEL_DIR="results"',
  )
  assert done.returncode == 0, done.stderr
  assert f"'{elsewhere}/results'" in done.stdout


@pytest.mark.slow
def test_a_new_environment_has_t5x_until_the_suite_is_uninstalled(
  wheel, tmp_path
):
  subprocess.run([sys.executable, '-m', 'venv', tmp_path / 'venv'], check=True)
  python = tmp_path / 'venv' / 'bin' / 'python'
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  environment['SELECTIVE_T5X_ENGINE'] = ''

  def run(*args, path=''):
    return subprocess.run(
      [python, *args],
      cwd=tmp_path,
      env=environment | ({'PYTHONPATH': str(path)} if path else {}),
      capture_output=True,
      text=True,
    )

  def t5x(path=''):
    return run('-c', 'import t5x; print(t5x.__file__)', path=path)

  assert 'No module named' in t5x().stderr
  assert not run('-m', 'pip', 'install', '--no-deps', str(wheel)).returncode
  site = pathlib.Path(
    run(
      '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'
    ).stdout.strip()
  )
  engine = site / 'selective_t5x' / 'engine' / '__init__.py'
  assert t5x().stdout.strip() == str(engine)

  # A real T5X wins: on PYTHONPATH, in the same folder, or after it.
  other = tmp_path / 'other' / 't5x'
  other.mkdir(parents=True)
  (other / '__init__.py').touch()
  real = str(other / '__init__.py')
  assert t5x(other.parent).stdout.strip() == real
  (site / 'zz.pth').write_text(f'{other.parent}\n')
  assert t5x().stdout.strip() == real
  (site / 'zz.pth').unlink()
  shutil.copytree(other, site / 't5x')
  assert t5x().stdout.strip() == str(site / 't5x' / '__init__.py')
  assert not run('-m', 'pip', 'uninstall', '-y', 'selective_t5x').returncode
  assert (site / 't5x' / '__init__.py').is_file()
  shutil.rmtree(site / 't5x')
  assert not list(site.glob('*t5x*'))
  assert 'No module named' in t5x().stderr
