import errno
import subprocess
import sys

import pytest

from selective_t5x import errors
from selective_t5x.cli import failures
from selective_t5x.errors import RunError, UserError


@pytest.mark.parametrize(
  'error, line',
  [
    (
      UserError("no such\n task\n  In call to configurable 'x'"),
      'no such task',
    ),
    (RunError('the training data is gone'), 'the training data is gone'),
    (ValueError('a mistake of ours'), ''),
  ],
)
def test_what_users_can_mend_is_one_line(error, line):
  assert failures.one_line(error) == line


@pytest.mark.parametrize(
  'cause',
  [
    OSError(errno.ENOSPC, 'No space left on device', '/results/x'),
    OSError(errno.EFBIG, 'File too large'),
    # TensorStore and TensorFlow raise their own types.
    ValueError(
      'RESOURCE_EXHAUSTED: Error writing "x": No space left on device'
    ),
  ],
)
def test_a_full_disk_is_known_however_deep_it_is(cause):
  try:
    try:
      raise cause
    except Exception as error:
      raise RuntimeError('the save failed\nwith many lines') from error
  except RuntimeError as error:
    line = failures.one_line(error)
  assert line.startswith('the disk is full (') and '\n' not in line


def test_a_process_that_is_gone_is_one_line():
  error = RuntimeError(
    'INTERNAL: Error dispatching computation: Gloo all-reduce failed: '
    'Read error [127.0.0.1]:1: Connection reset by peer\nmore'
  )
  line = failures.one_line(error)
  assert line.startswith('another process of this run has ended')
  assert '(Gloo all-reduce failed: Read error' in line and '\n' not in line


def test_a_mistake_behind_another_error_is_not_hidden():
  try:
    try:
      raise UserError('no such task')
    except UserError:
      raise KeyError('ours')  # noqa: B904
  except KeyError as error:
    assert failures.one_line(error) == ''


def test_sigterm_ends_a_process_in_the_middle_of_a_finaliser():
  program = (
    'import os, signal, time\n'
    'from selective_t5x.cli import failures\n'
    'failures.stop_at_sigterm()\n'
    'class Held:\n'
    '  def __del__(self):\n'
    '    os.kill(os.getpid(), signal.SIGTERM)\n'
    '    time.sleep(0)\n'
    'Held()\n'
    'print("goes on", flush=True)\n'
    'time.sleep(30)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True
  )
  assert done.returncode == errors.INTERRUPTED
  assert (done.stdout, done.stderr) == ('goes on\n', '')
