"""The notebooks hold no outputs, and run from top to bottom at a tiny size."""

import ast
import pathlib
import shlex
import shutil
import sys

import nbformat
import pytest

from tests.convert import conversions

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMES = sorted(path.name for path in (ROOT / 'notebooks').glob('*.ipynb'))
TINY = '--gin_file=gin/test/tiny.gin --gin.vocabularies.Choice.kind="\'bytes\'"'


def read(name):
  return nbformat.read(ROOT / 'notebooks' / name, as_version=4)


def parts(cell):
  """Returns (the commands of a cell, its Python)."""
  lines = cell.source.replace('\\\n', '').splitlines()
  return (
    [line[1:] for line in lines if line.startswith('!')],
    '\n'.join(line for line in lines if not line.startswith('!')),
  )


def run(name, parameters, commands, folder):
  """Runs the cells as Jupyter does; returns (names, shown values)."""
  namespace, shown = {}, []
  for cell in read(name).cells:
    if cell.cell_type != 'code':
      continue
    lines, code = parts(cell)
    for line in lines:
      words = shlex.split(line.format(**namespace))
      assert words[:2] == [sys.executable, '-m']
      done = commands.run(words[2], words[3:], folder)
      assert done.returncode == 0, done.stderr[-3000:]
    *body, last = [*ast.parse(code).body] or [ast.Pass(lineno=1, col_offset=0)]
    value = last.value if isinstance(last, ast.Expr) else None
    body = body if value else [*body, last]
    exec(compile(ast.Module(body, []), name, 'exec'), namespace)
    if value:
      code = compile(ast.Expression(value), name, 'eval')
      shown.append(eval(code, namespace))
    if 'parameters' in cell.metadata.get('tags', ()):
      assert set(parameters) <= set(namespace)
      namespace |= parameters
  return namespace, [value for value in shown if value is not None]


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('MPLBACKEND', 'Agg')
  return tmp_path


def test_the_three_are_there_and_linked():
  assert NAMES == [
    'bring_your_own_t5.ipynb',
    'quickstart.ipynb',
    'what_does_my_model_forget.ipynb',
  ]
  readme = (ROOT / 'README.md').read_text()
  assert all(f'](notebooks/{name})' in readme for name in NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_a_notebook_is_valid_without_outputs(name):
  book = read(name)
  nbformat.validate(book)
  tagged = [c for c in book.cells if 'parameters' in c.metadata.get('tags', ())]
  assert len(tagged) == 1
  for cell in book.cells:
    if cell.cell_type == 'code':
      assert not cell.outputs and cell.execution_count is None
      ast.parse(parts(cell)[1])
    else:
      for link in cell.source.split('](')[1:]:
        target = link.split(')')[0]
        assert '://' in target or (ROOT / 'notebooks' / target).exists()


@pytest.mark.slow
def test_the_quickstart_runs(commands, folder, capsys):
  parameters = {'STEPS': 4, 'OUTPUT': 'out', 'MORE': TINY.split()[0]}
  # The file comes before STEPS, and would set it too.
  parameters['MORE'] += ' --gin.TRAIN_STEPS=4'
  _, shown = run('quickstart.ipynb', parameters, commands, folder)
  assert len(shown) == 1 and shown[0].axes[0].lines
  printed = capsys.readouterr().out
  assert 'selective - baseline' in printed
  assert '[[0. 0. 0. 0.]' in printed and ' 3. ' in printed


@pytest.mark.slow
def test_ones_own_t5_comes_in_and_goes_out(commands, folder, capsys):
  shutil.copytree(conversions.GOLDEN / 't5_1_1', folder / 'mine')
  shutil.copyfile(conversions.PIECES, folder / 'mine' / 'spiece.model')
  run(
    'bring_your_own_t5.ipynb',
    {
      'FOLDER': 'mine',
      'RESULTS': 'out',
      'STEPS': 2,
      'FADE_STEPS': 1,
      'BUDGET': 4,
      'MORE': '--gin.BATCH_SIZE=2 --gin.EVAL_STEPS=1 --gin.EVAL_PERIOD=1 '
      '--gin.WARMUP_STEPS=0 '
      "--gin.TASK_FEATURE_LENGTHS=\"{'inputs': 32, 'targets': 16}\"",
    },
    commands,
    folder,
  )
  for name in ('exported', 'exported_selective'):
    assert (folder / 'out' / name / 'config.json').exists()
  assert list((folder / 'out/exported_selective').glob('*.py'))
  printed = capsys.readouterr().out
  assert 'selective wikipedia_sample_span_corruption loss in nats' in printed
  assert 'baseline/checkpoint_2' in printed


@pytest.mark.slow
def test_what_a_model_forgets_is_shown(commands, folder, capsys):
  _, shown = run(
    'what_does_my_model_forget.ipynb',
    {
      'CHECKPOINT': 'out',
      'STEPS': 4,
      'BUDGETS': (8, 4),
      'TEXTS': ['The cat sat.'],
      'MORE': f'{TINY} --gin.TRAIN_STEPS=4',
    },
    commands,
    folder,
  )
  (viewer,) = shown
  frame = viewer._repr_html_()
  assert (
    frame.startswith('<iframe srcdoc="') and 'What selection masks' in frame
  )
  printed = capsys.readouterr().out
  assert 'layer 0: ' in printed
  assert 'Window, 4 keys: ' in printed and 'Selective, 8 keys: ' in printed
