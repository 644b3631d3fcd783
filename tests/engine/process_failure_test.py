"""Two real processes on loopback, one of which fails or is preempted."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from t5x import checkpoints

# One process of two; each says at which step it is.
_PROGRAM = """
import sys
import jax
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
port, process, model_dir = sys.argv[1:]
jax.distributed.initialize(
  f'localhost:{port}', 2, int(process), heartbeat_timeout_seconds=10
)
from selective_t5x.errors import Interrupted
from t5x import partitioning, train
from tests.engine import tiny

class Slow(partitioning.PjitPartitioner):
  steps = 0
  def put_batch(self, batch):
    import time
    self.steps += 1
    print('step', self.steps, flush=True)
    time.sleep(0.2)
    return super().put_batch(batch)

args = tiny.train_args(
  model_dir, partitioner=Slow(num_partitions=1), eval_period=0,
  train_eval_dataset_cfg=None, total_steps=1000, stats_period=1000,
)
args['checkpoint_cfg'].save.period = 1000
try:
  train.train(**args)
except Interrupted as stopped:
  print(stopped, flush=True)
  sys.exit(75)
"""


@pytest.fixture
def processes(tmp_path):
  """Starts both, waits until both have taken a step, and ends them."""
  with socket.socket() as found:
    found.bind(('localhost', 0))
    port = str(found.getsockname()[1])
  started = [
    subprocess.Popen(
      [sys.executable, '-c', _PROGRAM, port, str(number), tmp_path / 'run'],
      stdout=(tmp_path / f'out{number}').open('w'),
      stderr=(tmp_path / f'err{number}').open('w'),
      env=os.environ | {'JAX_NUM_CPU_DEVICES': '1'},
    )
    for number in range(2)
  ]
  try:
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
      said = [(tmp_path / f'out{n}').read_text() for n in range(2)]
      if all('step 3' in text for text in said):
        break
      codes = [p.poll() for p in started]
      assert codes == [None, None], (tmp_path / 'err0').read_text()[-2000:]
      time.sleep(0.1)
    yield started
  finally:
    for process in started:
      process.kill()
      process.wait()


@pytest.mark.slow
@pytest.mark.parametrize('failing', [0, 1])
def test_the_other_ends_with_a_reason(failing, processes, tmp_path):
  processes[failing].send_signal(signal.SIGKILL)
  assert processes[1 - failing].wait(timeout=200) != 0
  said = (tmp_path / f'err{1 - failing}').read_text()
  assert 'heartbeat' in said or 'Gloo' in said or 'closed' in said, said[-2000:]


@pytest.mark.slow
def test_both_stop_at_one_step_and_save(processes, tmp_path):
  processes[1].send_signal(signal.SIGTERM)
  assert [p.wait(timeout=200) for p in processes] == [75, 75]
  said = [(tmp_path / f'out{n}').read_text().splitlines()[-1] for n in (0, 1)]
  assert said[0] == said[1]
  (step,) = [s for s in checkpoints.all_steps(tmp_path / 'run') if s]
  assert said[0].startswith(f'stopped by SIGTERM after step {step};')
