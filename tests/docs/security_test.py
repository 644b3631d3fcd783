"""Nothing that is loaded is executed, gin files and task modules apart."""

import ast
import pathlib
import pickle

import numpy as np
import pytest

from t5x import checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = [
  path
  for folder in ('selective_t5x', 'tasks')
  for path in sorted((ROOT / folder).rglob('*.py'))
]
# What reads code out of data, or hands text to a shell.
EXECUTES = {'pickle', 'cloudpickle', 'dill', 'marshal', 'shelve', 'joblib'}
CALLS = {'eval', 'exec', 'compile', '__import__'}


def _calls(tree):
  return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


@pytest.mark.parametrize('path', SOURCES, ids=lambda p: p.name)
def test_no_module_executes_what_it_loads(path):
  tree = ast.parse(path.read_text())
  imported = {
    name.split('.')[0]
    for node in ast.walk(tree)
    if isinstance(node, ast.Import | ast.ImportFrom)
    for name in [getattr(node, 'module', None) or '', *_names(node)]
  }
  assert not imported & EXECUTES
  for call in _calls(tree):
    name = ast.unparse(call.func)
    assert name not in CALLS | {'os.system', 'os.popen'}
    keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
    assert keywords.get('shell', 'False') == 'False'
    if name in ('np.load', 'numpy.load'):
      assert keywords['allow_pickle'] == 'False'


def _names(node):
  return [alias.name for alias in node.names]


class _Harmful:
  def __reduce__(self):
    return (pytest.fail, ('a file was executed',))


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
  (tmp_path / 'window').mkdir()
  harmful = np.array([_Harmful()], object)
  np.savez(tmp_path / 'window' / 'window.npz', harmful)
  with pytest.raises(ValueError, match='allow_pickle'):
    checkpoints.restore_window(str(tmp_path))
  with pytest.raises(BaseException, match='a file was executed'):
    pickle.loads(pickle.dumps(_Harmful()))  # The test itself can fail.
