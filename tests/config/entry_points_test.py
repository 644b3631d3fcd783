"""The functions of run modes take names in __main__ that no command may use."""

import ast
import pathlib

import pytest

from selective_t5x.config import entry_points

ROOT = pathlib.Path(__file__).resolve().parents[2]
TAKEN = {name for _, name in entry_points.MODULES.values()}
# It has a function of its own configured in place of the engine's.
ON_PURPOSE = {'benchmarks/engine.py'}


def names_of_commands():
  """Yields (file, the names that it defines) for every command."""
  for folder in ('selective_t5x', 'tasks', 'benchmarks', 'tools', 'xm_launch'):
    for path in sorted((ROOT / folder).rglob('*.py')):
      text = path.read_text(encoding='utf-8')
      name = str(path.relative_to(ROOT))
      # The modules of the engine are where the functions come from.
      exempt = name in ON_PURPOSE or name.startswith('selective_t5x/engine/')
      if "__name__ == '__main__'" in text and not exempt:
        body = ast.parse(text).body
        yield name, {getattr(node, 'name', None) for node in body}


COMMANDS = list(names_of_commands())


@pytest.mark.parametrize(
  'names', [pytest.param(names, id=file) for file, names in COMMANDS]
)
def test_no_command_defines_a_name_that_a_configuration_replaces(names):
  assert not names & TAKEN


@pytest.fixture
def registered_anew():
  """Lets a test register modes, and registers them after it."""
  entry_points._register.cache_clear()
  yield
  entry_points._register.cache_clear()
  entry_points.register()


def test_a_script_is_warned_that_its_function_is_replaced(
  registered_anew, monkeypatch, caplog
):
  import __main__
  import t5x.train

  def train():
    """Stands for a function of somebody's script."""

  train.__module__ = '__main__'
  monkeypatch.setattr(__main__, 'train', train, raising=False)
  with caplog.at_level('WARNING', logger='absl'):
    entry_points.register()
  assert __main__.train is t5x.train.train
  (warning,) = (r.getMessage() for r in caplog.records)
  assert warning.startswith('__main__.train: gin files look for that of t5x')
