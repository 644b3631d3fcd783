"""The table of docs/t5x_migration.md is that of the real T5X and the engine."""

import pathlib

import pytest

from selective_t5x.errors import UserError
from selective_t5x.t5x_check import check, comparison, page
from selective_t5x.t5x_check.definitions import Library
from tests.t5x_check import checkout

PAGE = pathlib.Path(__file__).resolve().parents[2] / 'docs' / 't5x_migration.md'


def test_the_table_is_true():
  text = PAGE.read_text()
  assert page.with_table(text, checkout.of_t5x()) == text


def test_t5x_lacks_nothing_that_its_own_modules_use():
  t5x = Library({'t5x': [checkout.of_t5x()]})
  files = [
    file
    for file in check.source_files(str(checkout.of_t5x()))
    if file.suffix == '.py' and not file.stem.endswith('_test')
  ]
  uses = [use for file in files for use in check.uses(file, t5x)]
  assert len(uses) > 500
  assert list(check.problems(uses, t5x)) == []


@pytest.fixture
def packages(tmp_path):
  """The folders of a small T5X and of an engine that lacks a part of it."""
  theirs = (
    'VERSION = 1\n\n'
    'class Trainer:\n'
    '  def __init__(self, model, seed=0):\n    self.model = model\n'
    '  def train(self, steps):\n    pass\n\n'
    'class Action:\n  def run(self):\n    pass\n\n'
    'def _private():\n  pass\n'
  )
  ours = (
    'VERSION = 1\n\n'
    'class Trainer:\n'
    '  def __init__(self, model):\n    self.model = model\n'
    '  def train(self, **kwargs):\n    pass\n'
  )
  folders = tmp_path / 'theirs', tmp_path / 'ours'
  for folder, text in zip(folders, (theirs, ours), strict=True):
    folder.mkdir()
    (folder / 'trainer.py').write_text(text)
    (folder / 'trainer_test.py').write_text('NAME = 1\n')
  return folders


def test_names_and_parameters_are_compared(packages):
  libraries = [Library({'t5x': [folder]}) for folder in packages]
  (one,) = comparison.compare(*libraries)
  assert one.module == 't5x.trainer'
  assert [name.removeprefix('t5x.trainer.') for name in one.names] == [
    'VERSION',
    'Trainer',
    'Trainer(model)',
    'Trainer(seed)',
    'Trainer.model',
    'Trainer.train',
    'Trainer.train(steps)',
    'Action',
    'Action.run',
  ]
  assert one.missing == (
    't5x.trainer.Trainer(seed)',
    't5x.trainer.Action',
    't5x.trainer.Action.run',
  )
  assert one.roots == ('t5x.trainer.Trainer(seed)', 't5x.trainer.Action')


def test_the_table_replaces_the_old_one(packages):
  text = f'before\n{page.START}old\n{page.END}after\n'
  new = page.with_table(text, packages[0])
  assert 'old' not in new
  assert '| `t5x.trainer` | 9 | ' in new
  assert page.with_table(new, packages[0]) == new
  with pytest.raises(UserError, match='expected the folder t5x of a checkout'):
    page.with_table(text, packages[0].parent)
  with pytest.raises(UserError, match='the page has no <!-- table -->'):
    page.with_table('text', packages[0])
