import json
import subprocess
import sys

import pytest

from tools.t5x_users import __main__ as t5x_users
from tools.t5x_users import environment


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
    ([('a_test.py', False, '/a/test_data/x: no such file')], False),
    ([], True),
  ],
)
def test_only_known_failures_are_accepted(results, failed, capsys):
  assert t5x_users._show(results) == failed
  assert ('FAIL' in capsys.readouterr().out) == (not all(r[1] for r in results))


def test_placeholders_have_every_name():
  finder = environment._Finder(['absent_package'])
  assert finder.find_spec('json') is None
  module = finder.create_module(finder.find_spec('absent_package.part'))
  assert module.Class.CONSTANT - module.OTHER == 1
  with pytest.raises(AttributeError):
    module.__file_of_a_module__  # noqa: B018
