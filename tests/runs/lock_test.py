import os
import signal
import subprocess
import sys

import pytest

from selective_t5x.errors import UserError
from selective_t5x.runs import lock as run_lock

HOLD = (
  'import sys\n'
  'from selective_t5x.runs import lock as run_lock\n'
  'with run_lock.held(sys.argv[1]):\n'
  '  print("held", flush=True)\n'
  '  sys.stdin.read()\n'
)


@pytest.fixture
def holder(tmp_path):
  """A process that holds the lock."""
  with subprocess.Popen(
    [sys.executable, '-c', HOLD, tmp_path],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  ) as process:
    assert process.stdout.readline() == b'held\n'
    yield process


def test_the_second_is_told_who_holds_it(holder, tmp_path):
  for _ in range(2):  # Asking takes nothing from the holder.
    with pytest.raises(UserError, match=f'process {holder.pid} on .* [(]since'):
      with run_lock.held(tmp_path):
        pass
  holder.stdin.close()
  holder.wait()
  with run_lock.held(tmp_path):
    assert f'process {os.getpid()} ' in (tmp_path / '.lock').read_text()
  assert not list(tmp_path.iterdir())


def test_a_killed_holder_blocks_nobody(holder, tmp_path):
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  assert (tmp_path / '.lock').exists()
  with run_lock.held(tmp_path):
    pass


def test_a_refused_run_leaves_no_folder(tmp_path):
  with pytest.raises(UserError, match='no such task'):
    with run_lock.held(tmp_path / 'new'):
      raise UserError('no such task')
  assert not (tmp_path / 'new').exists()
  (tmp_path / 'old').mkdir()
  (tmp_path / 'old' / 'mine').touch()
  with pytest.raises(UserError):
    with run_lock.held(tmp_path / 'old'):
      raise UserError('no such task')
  assert os.listdir(tmp_path / 'old') == ['mine']


def test_a_folder_that_cannot_be(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match='cannot write to it'):
    with run_lock.held(tmp_path / 'file'):
      pass
  with run_lock.held('gs://bucket/run'):
    assert not os.path.exists('gs:')
