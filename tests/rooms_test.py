"""The layout: what lies where, and which room may import which."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'selective_t5x'

# Commands of the root; the other files there are names that gin files import.
COMMANDS = {'main', 'compare', 'quickstart'}
BASE = {'__init__', 'errors', 'engine_finder'}
# Commands whose documented names lie in a lower room than what they run.
FORWARDS = {'pruning/search.py', 'pruning/frontier.py'}

# From the top: a room may import those below it.
FLOORS = (
  ('t5x_package',),
  ('main', 'compare', 'quickstart'),
  ('studies',),
  ('comparisons',),
  ('budgets', 'costs', 'convert', 'lm_eval'),
  ('report', 'trackers'),
  ('runs',),
  ('tasks', 't5x_check'),
  ('config',),
  ('cli',),
  ('gin face',),
  ('bindings',),
  ('nn',),
  ('pruning',),
  ('attention',),
  ('engine',),
  ('base',),
)
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
ENGINE_AND_BASE = ('engine', 'base')
ALLOWED_ALONE = {'engine': {'errors'}}


def sources():
  for path in sorted(PACKAGE.rglob('*.py')):
    yield path.relative_to(PACKAGE), path
  for path in sorted((ROOT / 'tasks').rglob('*.py')):
    yield pathlib.Path('tasks') / path.relative_to(ROOT / 'tasks'), path


def room(parts):
  """Returns the room of a module's path below the package."""
  if len(parts) > 1 or (PACKAGE / parts[0]).is_dir() or parts[0] == 'tasks':
    return parts[0]
  if parts[0] in COMMANDS:
    return parts[0]
  return 'base' if parts[0] in BASE else 'gin face'


def imports(path):
  """Yields the modules of the suite that a file imports, as tuples of names."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      names = node.module.split('.')
      if names == ['selective_t5x']:
        for alias in node.names:
          yield (alias.name,)
      elif names[0] == 'selective_t5x':
        yield (*names[1:],)
    elif isinstance(node, ast.Import):
      for alias in node.names:
        names = alias.name.split('.')
        if names[0] == 'selective_t5x' and len(names) > 1:
          yield (*names[1:],)


def test_the_root_holds_what_gin_imports_or_a_command_runs():
  texts = [p.read_text() for p in (ROOT / 'gin').rglob('*.gin')]
  imported = set(
    re.findall(r'^from selective_t5x import (\w+)', '\n'.join(texts), re.M)
  )
  root = {path.stem for path in PACKAGE.glob('*.py')}
  assert root <= imported | COMMANDS | BASE
  assert len(root) <= 18


@pytest.mark.parametrize('source', [str(s) for s, _ in sources()])
def test_arrows_point_one_way(source):
  if source in FORWARDS:
    return
  folder = ROOT / 'tasks' if source.startswith('tasks/') else PACKAGE
  path = folder / source.removeprefix('tasks/')
  here = room(pathlib.Path(source).with_suffix('').parts)
  for names in imports(path):
    there = room(names)
    assert there == here or FLOOR[there] > FLOOR[here], (
      f'{source} imports {".".join(names)}: {here} may not import {there}'
    )
