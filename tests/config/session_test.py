import subprocess
import sys

import gin
import pytest

from selective_t5x.config.session import Session
from selective_t5x.errors import UserError

EXPERIMENT = 'gin/experiments/variable_assignment.gin'
FOLDER = "MODEL_DIR = 'x'"


def test_inside_the_context_gin_has_the_configuration_and_no_other(tmp_path):
  gin.parse_config('LEFT = 1')
  session = Session([EXPERIMENT], [FOLDER, 'TRAIN_STEPS = 700'])
  assert 'LEFT' in gin.config_str()
  for _ in range(2):  # It can be entered again.
    with session:
      assert 'LEFT' not in gin.config_str()
      assert session.bound('total_steps') == 700
      assert session.bound('no_such_parameter', 'total_steps') == 700
      assert session.bound('no_such_parameter') is None
      assert session.entry.__name__ == 'train'
    assert not gin.config_str()


def test_relative_paths_are_of_the_folder_in_which_it_was_made(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  session = Session([EXPERIMENT], [FOLDER])
  monkeypatch.chdir('/')
  with session:
    assert session.bound('model_dir') == str(tmp_path / 'x')


@pytest.mark.parametrize(
  'bindings, expected',
  [
    ([FOLDER, 'BATCH_SZE = 4'], 'nearest: BATCH_SIZE'),
    ([], 'no value for MODEL_DIR'),
  ],
)
def test_what_does_not_fit_together_is_said_when_it_is_made(bindings, expected):
  with pytest.raises(UserError, match=expected):
    Session([EXPERIMENT], bindings)


@pytest.mark.parametrize('value', ["'four'", '@no_such_function'])
def test_what_gin_or_the_run_refuses_is_said_on_entering(value):
  session = Session([EXPERIMENT], [FOLDER, f'BATCH_SIZE = {value}'])
  with pytest.raises(UserError, match='--gin.BATCH_SIZE: '):
    session.__enter__()
  assert not gin.config_str()
  with gin.unlock_config():
    gin.parse_config('LEFT = 1')  # It is not locked either.


def test_making_one_imports_nothing_heavy():
  code = (
    'import sys\n'
    'from selective_t5x.config.session import Session\n'
    f'Session([{EXPERIMENT!r}], [{FOLDER!r}])\n'
    "assert not {'jax', 'numpy', 't5x', 'tensorflow'} & set(sys.modules)\n"
  )
  subprocess.run([sys.executable, '-c', code], check=True)
