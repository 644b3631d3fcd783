"""Real processes on loopback: they train as one does, and end together."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from selective_t5x import results
from t5x import checkpoints

# One process of several; --steps=N, and how long it rests before each.
_PROGRAM = """
import sys, time
from absl import flags
from selective_t5x import processes
processes.define_flags()
flags.DEFINE_string('model_dir', None, '')
flags.DEFINE_integer('steps', 4, '')
flags.DEFINE_float('rest', 0, '')
FLAGS = flags.FLAGS
FLAGS(sys.argv)
processes.check(FLAGS)
processes.connect(FLAGS)
import seqio, jax
from selective_t5x.errors import Interrupted
from t5x import partitioning, train
from tests.engine import tiny

class Partitioner(partitioning.PjitPartitioner):
  steps = 0
  def put_batch(self, batch):
    self.steps += 1
    print('step', self.steps, flush=True)
    time.sleep(FLAGS.rest)
    return super().put_batch(batch)

args = tiny.train_args(
  FLAGS.model_dir,
  partitioner=Partitioner(num_partitions=1),
  eval_period=0,
  train_eval_dataset_cfg=None,
  total_steps=FLAGS.steps,
  stats_period=min(FLAGS.steps, 10),
)
# In one order, whoever reads it.
cfg = args['train_dataset_cfg']
cfg.shuffle = cfg.pack = False
args['checkpoint_cfg'].save.period = FLAGS.steps
try:
  train.train(**args)
except Interrupted as stopped:
  print(stopped, flush=True)
  sys.exit(75)
except Exception:
  processes.fail()
"""


def start(folder, count, *flags, devices=1):
  """Starts processes that write into folder/outN and folder/errN."""
  folder.mkdir()
  with socket.socket() as found:
    found.bind(('localhost', 0))
    port = found.getsockname()[1]
  started = []
  for index in range(count):
    named = [
      f'--coordinator_address=localhost:{port}',
      f'--process_count={count}',
      f'--process_index={index}',
      '--heartbeat_seconds=10',
    ]
    started.append(
      subprocess.Popen(
        [
          sys.executable,
          '-c',
          _PROGRAM,
          *(named if count > 1 else []),
          f'--model_dir={folder / "run"}',
          *flags,
        ],
        stdout=(folder / f'out{index}').open('w'),
        stderr=(folder / f'err{index}').open('w'),
        env=os.environ | {'JAX_NUM_CPU_DEVICES': str(devices)},
      )
    )
  return started


def said(folder, index, what='err'):
  return (folder / f'{what}{index}').read_text()


def finish(started, folder, seconds=300):
  try:
    codes = [p.wait(timeout=seconds) for p in started]
  finally:
    for process in started:
      process.kill()
  return codes, [said(folder, i)[-1500:] for i in range(len(started))]


@pytest.mark.slow
def test_several_processes_train_as_one(tmp_path):
  losses = {}
  for count in (1, 2, 4):
    folder = tmp_path / str(count)
    codes, errors = finish(start(folder, count, devices=4 // count), folder)
    assert codes == [0] * count, errors
    rows = results.read_metrics(folder / 'run' / 'train')
    losses[count] = [row['loss'] for row in rows]
    assert checkpoints.all_steps(folder / 'run') == [0, 4]
  assert len(losses[1]) == 1
  for count in (2, 4):
    np.testing.assert_allclose(losses[count], losses[1], rtol=1e-5)


@pytest.fixture
def running(tmp_path):
  """Two processes with steps to go, and their folder."""
  folder = tmp_path / 'two'
  started = start(folder, 2, '--steps=1000', '--rest=0.2')
  try:
    deadline = time.monotonic() + 300
    while not all('step 3' in said(folder, i, 'out') for i in (0, 1)):
      assert [p.poll() for p in started] == [None] * 2, said(folder, 0)[-1500:]
      assert time.monotonic() < deadline
      time.sleep(0.1)
    yield started, folder
  finally:
    for process in started:
      process.kill()
      process.wait()


@pytest.mark.slow
@pytest.mark.parametrize('failing', [0, 1])
def test_where_one_dies_the_other_ends_and_says_why(failing, running):
  started, folder = running
  started[failing].send_signal(signal.SIGKILL)
  assert started[1 - failing].wait(timeout=100) != 0
  reason = said(folder, 1 - failing)
  assert any(w in reason for w in ('heartbeat', 'Gloo', 'coordination')), (
    reason[-1500:]
  )


@pytest.mark.slow
def test_sigterm_to_one_stops_both_at_one_step_which_is_saved(running):
  started, folder = running
  started[1].send_signal(signal.SIGTERM)
  codes, errors = finish(started, folder)
  assert codes == [75, 75], errors
  last = [said(folder, i, 'out').splitlines()[-1] for i in (0, 1)]
  assert last[0] == last[1]
  (step,) = [s for s in checkpoints.all_steps(folder / 'run') if s]
  assert last[0].startswith(f'stopped by SIGTERM after step {step};')
