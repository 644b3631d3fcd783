"""The counters of benchmarks/torture count: each has a planted defect."""

import os
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from t5x import checkpoints, partitioning
from tests.engine import tiny
from tools.torture import faults, outcomes
from tools.torture.training import STEPS, Training

pytestmark = pytest.mark.filterwarnings('ignore:os.fork')

ROWS = '{"step": 5, "loss": 1.5, "timing/seconds": 0.1}\n{"step": 6, "lo'


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A run's folder with two checkpoints and a line of metrics and a half."""
  folder = tmp_path_factory.mktemp('torture') / 'run'
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  initializer = tiny.initializer(tiny.model(), partitioner)
  state = initializer.from_scratch(jax.random.PRNGKey(0))
  manager = checkpoints.OrbaxCheckpointManagerInterface(
    str(folder), state, partitioner
  )
  for step in (STEPS - 1, STEPS):
    manager.save(state.replace_step(np.int32(step)))
  manager.close()
  (folder / 'train').mkdir()
  (folder / 'train/metrics.jsonl').write_text(ROWS)
  return folder


@pytest.fixture
def run(saved, tmp_path):
  """A Training in a copy of it; `programs` are what its starts run.

  The last one for all that follow.
  """
  folder = tmp_path / 'disk' / 'run'
  shutil.copytree(saved, folder)

  class Run(Training):
    def start(self, log=None, **limits):
      del limits
      program, *rest = self.programs
      self.programs = rest or [program]
      return _fork(program, log or self.log)

  example = Run(folder, outcomes.Counts(), random.Random(0), mounted=False)
  example.programs = [lambda: None]
  return example


def _fork(program, log):
  process = os.fork()
  if process:
    return process
  os.setsid()
  with open(log, 'w') as file:
    os.dup2(file.fileno(), 2)
  code = program() or 0
  os._exit(code)


def _says(text, code=0):
  def program():
    os.write(2, text.encode())
    return code

  return program


def _counted(run):
  return {k: v for k, v in vars(run.counts).items() if v}


def test_nothing_is_counted_where_nothing_is_wrong(run):
  run.finish()
  run.start_twice()
  assert not _counted(run)


def test_a_lost_checkpoint_is_counted(run):
  newest = run.folder / f'checkpoint_{STEPS}'
  run.programs = [lambda: shutil.rmtree(newest)]
  run.finish()
  assert _counted(run) == {'lost_checkpoints': 1}


def test_a_traceback_is_counted_once(run):
  run.programs = [_says('Traceback (most recent call last):\n  x\n')]
  run.finish()
  assert _counted(run) == {'tracebacks_shown_to_user': 1}
  run._tracebacks.look(run.logs())
  assert _counted(run) == {'tracebacks_shown_to_user': 1}


def test_an_exit_code_that_nothing_explains_is_counted(run):
  run.programs = [lambda: 3]
  run.finish()
  assert _counted(run) == {'diverged_resumes': 1}
  assert run.full_disk()
  assert _counted(run) == {'diverged_resumes': 2}


def test_a_second_trainer_that_is_not_refused_is_counted(run):
  (run.folder / '.lock').touch()
  run.programs = [lambda: time.sleep(1), lambda: None]
  assert not run.start_twice()
  assert _counted(run) == {'diverged_resumes': 1}


def test_what_is_left_on_a_full_disk_is_counted(run):
  run._mounted = True
  left = run.folder / 'checkpoint_50.orbax-checkpoint-tmp'
  run.programs = [lambda: left.mkdir() or 1]
  run.rng = random.Random(1)
  fill, faults.fill = faults.fill, lambda file, left: file.touch()
  try:
    assert run.full_disk()
  finally:
    faults.fill = fill
  assert _counted(run) == {'diverged_resumes': 1}


def test_a_process_that_hangs_is_counted_and_ended(run):
  process = _fork(lambda: time.sleep(60), run.log)
  assert outcomes.wait(process, run.counts, seconds=0.5) is None
  assert _counted(run) == {'hangs': 1}
  with pytest.raises(ChildProcessError):
    os.waitpid(process, 0)


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_in_time_is_a_fault(number, run):
  run.programs = [lambda: time.sleep(60)]
  (run.folder / 'train/metrics.jsonl').write_text(f'{{"step": {STEPS}}}\n')
  assert run.stop(number)
  assert not _counted(run)
  run.programs = [lambda: None]
  run.rng = random.Random(2)  # Waits for the end of what has ended.
  assert not run.stop(number, target=lambda process: None)


@pytest.mark.parametrize('kind', ['truncate', 'corrupt'])
def test_damage_is_seen_and_has_to_be_warned_of(kind, run):
  assert outcomes.newest_whole(run.folder) == STEPS
  assert run.kinds()[kind]()
  assert outcomes.newest_whole(run.folder) == STEPS - 1
  assert _counted(run) == {'diverged_resumes': 1}
  run.counts.diverged_resumes = 0
  assert kind not in run.kinds()  # Nothing whole would be left.
  run.programs = [_says('Resuming from')]
  shutil.copytree(
    run.folder / f'checkpoint_{STEPS - 1}', run.folder / 'checkpoint_1'
  )
  assert run.kinds()[kind]()
  assert not _counted(run)


def test_a_run_that_diverged_is_counted(run):
  file = 'train/metrics.jsonl'
  state = {'checkpoint_4': {'x': 'float32 (1,) 00'}}
  result = {file: outcomes.rows(run.folder / file)} | state
  assert result[file] == [{'step': 5, 'loss': 1.5}]
  outcomes.compare('run', result, dict(result), run.counts)
  assert not _counted(run)
  changed = {'checkpoint_4': {'x': 'float32 (1,) 01'}}
  for other in (result | changed, {}, result | {'more': 1}):
    outcomes.compare('run', other, result, run.counts)
  assert _counted(run) == {'diverged_resumes': 3}


def test_a_changed_bit_is_another_digest(run):
  newest = run.folder / f'checkpoint_{STEPS}'
  digests = outcomes.digests_of(newest)
  assert digests == outcomes.digests_of(newest)
  other = outcomes.digests_of(run.folder / f'checkpoint_{STEPS - 1}')
  assert {k for k in digests if digests[k] != other[k]} == {'state/step'}
