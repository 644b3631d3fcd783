"""Real processes on loopback: they train as one does, and end together."""

import contextlib
import os
import signal
import socket
import time

import numpy as np
import pytest

from selective_t5x.runs.metrics import read_metrics
from t5x import checkpoints

_PROGRAM = 'tests.engine.one_process'


class Group:
  """Processes of one run that write into folder/outN and folder/errN."""

  def __init__(self, commands, folder, count, *args):
    folder.mkdir()
    self._commands, self._folder = commands, folder
    with socket.socket() as listener:
      listener.bind(('localhost', 0))
      port = listener.getsockname()[1]
    named = [
      f'--coordinator_address=localhost:{port}',
      f'--process_count={count}',
      '--heartbeat_seconds=10',
    ]
    self.ids = [
      commands.start(
        _PROGRAM,
        [
          *([*named, f'--process_index={i}'] if count > 1 else []),
          f'--model_dir={folder / "run"}',
          *args,
        ],
        *(folder / f'out{i}', folder / f'err{i}', os.getcwd()),
      )
      for i in range(count)
    ]

  def said(self, index, what='err'):
    """Returns what one has printed."""
    return (self._folder / f'{what}{index}').read_text()

  def wait(self, index, seconds=300):
    """Returns an exit code; None if it does not end."""
    return self._commands.wait(self.ids[index], seconds)

  def finish(self):
    """Returns all exit codes and the ends of what was said."""
    every = range(len(self.ids))
    codes = [self.wait(i) for i in every]
    return codes, [self.said(i)[-1500:] for i in every]

  def running(self):
    """Waits until all have taken steps."""
    deadline = time.monotonic() + 300
    every = range(len(self.ids))
    while not all('step 3' in self.said(i, 'out') for i in every):
      assert time.monotonic() < deadline, self.said(0)[-1500:]
      time.sleep(0.1)


@pytest.fixture
def group(commands, tmp_path):
  """Starts groups, and ends what is left of them."""
  started = []

  def start(name, count, *args):
    started.append(Group(commands, tmp_path / name, count, *args))
    return started[-1]

  yield start
  for one in started:
    for i, process in enumerate(one.ids):
      with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
      one.wait(i)


@pytest.mark.slow
def test_several_processes_train_as_one(group, tmp_path):
  losses = {}
  for count in (1, 2, 4):
    codes, errors = group(str(count), count, f'--devices={4 // count}').finish()
    assert codes == [0] * count, errors
    run = tmp_path / str(count) / 'run'
    losses[count] = [row['loss'] for row in read_metrics(run / 'train')]
    assert checkpoints.all_steps(run) == [0, 4]
  assert len(losses[1]) == 1
  for count in (2, 4):
    np.testing.assert_allclose(losses[count], losses[1], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('failing', [0, 1])
def test_where_one_is_killed_the_other_ends_and_says_so(failing, group):
  two = group('two', 2, '--steps=1000', '--rest=0.2')
  two.running()
  os.kill(two.ids[failing], signal.SIGKILL)
  assert two.wait(1 - failing, 100) not in (0, None)
  reason = two.said(1 - failing)
  # Whichever notices first: the collective, or JAX's coordination service.
  assert (
    'error: another process of this run has ended' in reason
    or 'another task died' in reason
  ), reason[-1500:]
  assert 'Traceback' not in reason


@pytest.mark.slow
def test_where_one_stops_answering_the_other_ends_and_says_so(group):
  two = group('two', 2, '--steps=1000', '--rest=0.2')
  two.running()
  os.kill(two.ids[1], signal.SIGSTOP)
  # Within the 10 s of --heartbeat_seconds, and what a busy machine adds.
  assert two.wait(0, 60) not in (0, None)
  assert 'unhealthy (stopped sending heartbeats)' in two.said(0)


@pytest.mark.slow
def test_sigterm_to_one_stops_both_at_one_step_which_is_saved(group, tmp_path):
  two = group('two', 2, '--steps=1000', '--rest=0.2')
  two.running()
  os.kill(two.ids[1], signal.SIGTERM)
  codes, errors = two.finish()
  assert codes == [75, 75], errors
  last = [two.said(i, 'out').splitlines()[-1] for i in (0, 1)]
  assert last[0] == last[1]
  (step,) = [s for s in checkpoints.all_steps(tmp_path / 'two/run') if s]
  assert last[0].startswith(f'stopped by SIGTERM after step {step};')
