"""Every command of the README and of docs/tour.md runs, at a tiny size."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from tools import official_sets as official

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = (ROOT / 'README.md').read_text()
TOUR = (ROOT / 'docs' / 'tour.md').read_text()
PAGES = sorted(
  str(path.relative_to(ROOT)) for path in (ROOT / 'docs').rglob('*.md')
)
_COMMAND = re.compile(r'```sh\n(python -m .*?)```', re.DOTALL)
COMMANDS = _COMMAND.findall(TOUR)
TINY = ('--gin_file=gin/test/tiny.gin', '--gin.TRAIN_STEPS=4')


def _tiny(command: str) -> list[str]:
  """Returns a command of the README, for a run of four steps."""
  words = shlex.split(command.replace('\\\n', ''))
  assert words.pop(0) == 'python'
  words = [w.replace('checkpoint_400', 'checkpoint_4') for w in words]
  if '--run_mode=eval' in words or 'selective_t5x.report' in words:
    return words
  words = [w for w in words if 'TRAIN_STEPS' not in w]
  reads_text = not any('variable_assignment' in word for word in words)
  if 'selective_t5x.main' in words and reads_text:
    words.append("--gin.vocabularies.Choice.kind='bytes'")
  return [*words, *TINY]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """One folder for all commands: some read what an earlier one wrote."""
  folder = tmp_path_factory.mktemp('readme')
  (folder / 'novels').mkdir()
  for name in 'ab':
    lines = (f'{name} paragraph {i} of some length.\n\n' for i in range(200))
    (folder / 'novels' / f'{name}.txt').write_text(''.join(lines))
  official.write(folder / 'data', 3)
  return folder


def _run(command, commands, folder):
  if 'selective_t5x.compare' in command:
    command = command.replace('--seeds=3', '--seeds=1')
  dash_m, module, *args = _tiny(command)
  assert dash_m == '-m'
  return commands.run(module, args, folder)


@pytest.fixture(name='first', scope='module')
def _first(commands, folder):
  """Runs the first command, whose results others read."""
  return _run(COMMANDS[0], commands, folder)


@pytest.mark.parametrize(
  'command',
  [
    COMMANDS[0],
    *(pytest.param(c, marks=pytest.mark.slow) for c in COMMANDS[1:]),
  ],
)
def test_commands_run(command, commands, folder, first):
  run = first
  if command != COMMANDS[0]:
    run = _run(command, commands, folder)
  assert run.returncode == 0, run.stderr[-3000:]
  assert 'nothing in this run' not in run.stderr


def test_the_readmes_recipes_are_commands_of_the_tour():
  assert len(COMMANDS) == 9
  recipes = _COMMAND.findall(README)
  assert len(recipes) == 5
  assert set(recipes) <= set(COMMANDS)


def test_make_targets_of_the_readme_exist():
  targets = set(re.findall(r'^\s*make ([a-z-]+)', README, re.MULTILINE))
  assert {'quickstart', 'test'} <= targets
  for target in targets:
    run = subprocess.run(
      ['make', '--dry-run', target], cwd=ROOT, capture_output=True, check=False
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize('page', ['README.md', 'CONTRIBUTING.md', *PAGES])
def test_links_of_a_page_lead_somewhere(page):
  text = (ROOT / page).read_text()
  for link in re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', text):
    assert ((ROOT / page).parent / link).exists(), f'{page}: {link}'


@pytest.mark.slow
def test_python_example():
  example = re.search(r'```python\n(.*?)```', TOUR, re.DOTALL)[1]
  setup = (
    'import jax\n'
    'query = key = value = jax.random.normal(jax.random.key(0), (2, 5, 4, 8))\n'
    'head_logits = jax.random.normal(jax.random.key(1), (2, 5, 5))\n'
  )
  check = 'assert out.shape == query.shape and masking.shape == (2, 5, 5)\n'
  subprocess.run(
    [sys.executable, '-c', setup + example + check],
    check=True,
    env=os.environ,
  )
