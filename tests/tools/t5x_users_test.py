import json
import subprocess
import sys
import types

import pytest

from tools.t5x_users import __main__ as t5x_users
from tools.t5x_users import checks, environment


def test_missing_checkouts_are_skipped_by_name(tmp_path):
  run = subprocess.run(
    [sys.executable, '-m', 'tools.t5x_users', tmp_path],
    capture_output=True,
    text=True,
    check=False,
  )
  assert run.returncode == 0, run.stderr
  for name in t5x_users.REPOSITORIES:
    assert f'skipped: no {tmp_path / name}' in run.stdout
  assert json.loads(run.stdout.splitlines()[-1]) == {}


@pytest.mark.parametrize(
  'results, failed',
  [
    ([('a_test.py::test_a', True, '')], False),
    ([('a_test.py::test_a', False, 'no reason')], True),
    ([('a_test.py', False, "No module named 't5x.contrib.calm'")], False),
    ([('a_test.py', False, '/a/test_data/x: no such file')], True),
    ([], True),
  ],
)
def test_only_known_failures_are_accepted(results, failed, capsys):
  assert t5x_users._show(results) == failed
  assert ('FAIL' in capsys.readouterr().out) == (not all(r[1] for r in results))


def test_only_a_folder_of_test_data_that_is_not_there_is_replaced(tmp_path):
  modules = [
    types.SimpleNamespace(TEST_DATA=str(tmp_path)),
    types.SimpleNamespace(TEST_DATA=str(tmp_path / 'absent')),
    types.SimpleNamespace(),
  ]
  plugin = checks._TestData(tmp_path / 'data')
  plugin.pytest_collection_modifyitems(
    [types.SimpleNamespace(module=module) for module in modules]
  )
  assert [vars(module) for module in modules] == [
    {'TEST_DATA': str(tmp_path)},
    {'TEST_DATA': str(tmp_path / 'data')},
    {},
  ]


def test_placeholders_have_every_name():
  finder = environment._Finder(['absent_package'])
  assert finder.find_spec('json') is None
  module = finder.create_module(finder.find_spec('absent_package.part'))
  assert module.Class.CONSTANT - module.OTHER == 1
  with pytest.raises(AttributeError):
    module.__file_of_a_module__  # noqa: B018
