"""The counters of benchmarks/torture.py count: each has a planted defect."""

import json
import os
import random
import shutil
import time

import jax
import numpy as np
import pytest

from benchmarks import torture
from selective_t5x import results
from t5x import checkpoints, partitioning
from tests.engine import tiny

pytestmark = pytest.mark.filterwarnings('ignore:os.fork')

ROW = '{"step": 5, "loss": 1.5, "timing/seconds": 0.1}\n'


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A run's folder with two checkpoints and a line of metrics."""
  folder = tmp_path_factory.mktemp('torture') / 'run'
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  initializer = tiny.initializer(tiny.model(), partitioner)
  state = initializer.from_scratch(jax.random.PRNGKey(0))
  manager = checkpoints.CheckpointManager(str(folder), partitioner)
  for step in (torture._STEPS - 1, torture._STEPS):
    manager.save(state.replace_step(np.int32(step)))
  manager.close()
  (folder / 'train').mkdir()
  (folder / 'train/metrics.jsonl').write_text(ROW)
  return folder


@pytest.fixture
def run(saved, tmp_path):
  """A Training in a copy of it; `program` is what it starts."""
  folder = tmp_path / 'disk' / 'run'
  shutil.copytree(saved, folder)

  class Run(torture.Training):
    def start(self, **limits):
      return _fork(self.program, self._log)

  made = Run((), folder, tmp_path, torture.Counts(), random.Random(0))
  made.program = lambda: None
  return made


def _fork(program, log):
  process = os.fork()
  if process:
    return process
  os.setsid()
  with open(log, 'w') as file:
    os.dup2(file.fileno(), 2)
  code = program() or 0
  os._exit(code)


def _counted(counts):
  return {k: v for k, v in vars(counts).items() if v}


def test_nothing_is_counted_where_nothing_is_wrong(run):
  run.finish()
  assert not _counted(run._counts)


def test_a_lost_checkpoint_is_counted(run):
  newest = run._folder / f'checkpoint_{torture._STEPS}'
  run.program = lambda: shutil.rmtree(newest)
  run.finish()
  assert _counted(run._counts) == {'lost_checkpoints': 1}


def test_a_traceback_is_counted(run):
  def program():
    os.write(2, b'Traceback (most recent call last):\n  x\n')
    return 1

  run.program = program
  run.finish()
  # It also ended with an exit code that nothing explains.
  assert _counted(run._counts) == {
    'diverged_resumes': 1,
    'tracebacks_shown_to_user': 1,
  }


def test_a_process_that_hangs_is_counted_and_ended(tmp_path):
  counts = torture.Counts()
  process = _fork(lambda: time.sleep(60), tmp_path / 'log')
  assert torture.wait(process, counts, tmp_path / 'log', seconds=0.5) is None
  assert _counted(counts) == {'hangs': 1}
  with pytest.raises(ChildProcessError):
    os.waitpid(process, 0)


@pytest.mark.parametrize('kind', ['truncate', 'corrupt'])
def test_damage_is_seen(run, kind):
  assert run.can_be_damaged()
  assert torture.newest_whole(run._folder) == torture._STEPS
  assert run._damage(kind) == torture._STEPS - 1


def test_a_run_that_diverged_is_counted(run):
  state = {'target/x': 'float32 (1,) 00'}
  metrics = run._folder / 'train/metrics.jsonl'
  file = run._folder.with_name('run.digests')

  def compared(found):
    # What a child that has JAX writes, see `result`.
    results.write_json(file, found)
    expected = {'train/metrics.jsonl': torture.rows(metrics), **state}
    counts = torture.Counts()
    torture.compare_results('run', run._folder, expected, counts, _read(file))
    return _counted(counts)

  assert compared(state) == {}
  assert compared({'target/x': 'float32 (1,) 01'}) == {'diverged_resumes': 1}
  assert compared({'error': 'no checkpoint'}) == {'diverged_resumes': 1}


def _read(file):
  return lambda _: json.loads(file.read_text())
