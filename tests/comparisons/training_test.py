"""Cells are trained, resumed, waited for and stopped."""

import fcntl
import io
import json
import pathlib
import re
import subprocess
import sys
import time
import types

import pytest

from selective_t5x.comparisons import plan, training
from selective_t5x.comparisons.training import CellError, run_cells
from selective_t5x.runs.files import SUMMARY_FILE, read_json, write_json
from selective_t5x.runs.metrics import read_metrics
from tests.support import fake_training


def starts(cell):
  return len((cell.folder / 'starts.txt').read_text().splitlines())


def test_a_finished_cell_is_kept(setting):
  cell = plan.make_cells(**setting)[0]
  run_cells([cell], program=fake_training.PROGRAM)
  summary = (cell.folder / SUMMARY_FILE).read_bytes()
  assert json.loads(summary)['steps'] == 40
  assert 'training --run_mode=train' in (cell.folder / 'log.txt').read_text()
  again = plan.make_cells(**setting)[0]
  assert again.finished
  run_cells([again], program=fake_training.PROGRAM)
  assert starts(cell) == 1
  assert (cell.folder / SUMMARY_FILE).read_bytes() == summary


def test_a_failed_cell_shows_its_log_and_goes_on_later(setting, capsys):
  cell = plan.make_cells(**setting)[0]
  setting['output_dir'].mkdir()
  crash = setting['output_dir'] / 'crash'
  crash.touch()
  with pytest.raises(CellError, match='1 of 1 runs failed: baseline-seed0'):
    run_cells([cell], program=fake_training.PROGRAM)
  said = capsys.readouterr().err
  assert re.search(r'failed with exit code 1(.|\n)*on fire', said)
  assert not cell.finished
  crash.unlink()
  run_cells([cell], program=fake_training.PROGRAM)
  assert starts(cell) == 2
  rows = read_metrics(cell.folder / 'train')
  assert [row['step'] for row in rows] == [10, 20, 30, 40]


def test_a_mistake_that_trained_nothing_can_be_mended_in_place(setting, capsys):
  cell = plan.make_cells(**setting)[0]
  fails = (sys.executable, '-c', 'raise SystemExit("no such task")')
  with pytest.raises(CellError):
    run_cells([cell], program=fails)
  assert 'no such task' in capsys.readouterr().err
  mended = {**setting, 'gin_bindings': ['LEARNING_RATE = 0.3']}
  cell = plan.make_cells(**mended)[0]
  run_cells([cell], program=fake_training.PROGRAM)
  there = read_json(cell.folder / plan.CELL_FILE)
  assert there['bindings']['LEARNING_RATE'] == '0.3'


def test_waits_for_another_process_at_the_same_cell(setting):
  cell = plan.make_cells(**setting)[0]
  code = (
    'import fcntl, pathlib, sys, time\n'
    'sys.path.insert(0, sys.argv[2])\n'
    'from selective_t5x.comparisons import plan\n'
    'from selective_t5x.comparisons import training\n'
    'from selective_t5x.runs.summary import write_summary\n'
    'import fake_training\n'
    'folder = pathlib.Path(sys.argv[1])\n'
    'with open(folder / ".cell.lock", "w") as lock:\n'
    '  fcntl.flock(lock, fcntl.LOCK_EX)\n'
    '  print("locked", flush=True)\n'
    '  sys.stdin.readline()\n'
    '  fake_training.write_run(folder, steps=40, seed=0, selective=False,\n'
    '                          pause=0.3)\n'
    '  write_summary(folder)\n'
  )
  cell.folder.mkdir(parents=True)
  write_json(cell.folder / plan.CELL_FILE, plan.identity(cell))
  here = str(pathlib.Path(fake_training.__file__).parent)
  with subprocess.Popen(
    [sys.executable, '-c', code, str(cell.folder), here],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  ) as other:
    assert other.stdout.readline() == b'locked\n'
    other.stdin.write(b'go\n')
    other.stdin.flush()
    run_cells([cell], program=fake_training.PROGRAM)
  assert cell.finished and starts(cell) == 1


def test_a_run_that_sigterm_stopped_goes_on(setting, capsys):
  cell = plan.make_cells(**setting)[0]
  first = 'import pathlib, runpy, sys\nfake = sys.argv.pop(1)\n'
  first += f'mark = pathlib.Path({str(setting["output_dir"] / "mark")!r})\n'
  first += 'if not mark.exists():\n  mark.touch()\n  sys.exit(75)\n'
  first += "runpy.run_path(fake, run_name='__main__')\n"
  run_cells(
    [cell], program=(sys.executable, '-c', first, fake_training.__file__)
  )
  assert cell.finished and starts(cell) == 1
  assert 'saved at SIGTERM and resumed' in capsys.readouterr().err


# Waits until another one is there too; each gives up after a minute.
MEET = """
import pathlib, runpy, sys, time
fake, number = sys.argv[1:3]
del sys.argv[:2]
folder = next(a for a in sys.argv if a.startswith('--gin.MODEL_DIR='))
met = pathlib.Path(folder.partition('=')[2].strip("'")).parent / 'met'
met.mkdir(exist_ok=True)
(met / str(time.monotonic_ns())).touch()
deadline = time.monotonic() + 60
while len(list(met.iterdir())) < int(number) and time.monotonic() < deadline:
  time.sleep(0.01)
assert time.monotonic() < deadline, 'alone'
runpy.run_path(fake, run_name='__main__')
"""


# Takes SIGTERM, and ends once the other one has taken it too.
END_TOGETHER = """
import pathlib, signal, sys, time
folder = next(a for a in sys.argv if a.startswith('--gin.MODEL_DIR='))
folder = pathlib.Path(folder.partition('=')[2].strip("'"))
out, name = folder.parent, folder.name
deadline = time.monotonic() + 60

def wait_for(suffix):
  while len(list(out.glob('*.' + suffix))) < 2:
    if time.monotonic() > deadline:
      (out / (name + '.alone')).touch()
      sys.exit(1)
    time.sleep(0.01)

def stop(*_):
  (out / (name + '.told')).touch()
  wait_for('told')
  sys.exit(75)

signal.signal(signal.SIGTERM, stop)
(out / (name + '.ready')).touch()
wait_for('never')
"""


def test_all_runs_are_told_to_stop_before_one_is_waited_for(
  setting, monkeypatch
):
  cells = plan.make_cells(**setting)[:2]
  out = setting['output_dir']

  def interrupted(_):
    if len(list(out.glob('*.ready'))) == 2:
      raise KeyboardInterrupt
    time.sleep(0.01)

  monkeypatch.setattr(
    training, 'time', types.SimpleNamespace(sleep=interrupted)
  )
  with pytest.raises(KeyboardInterrupt):
    run_cells(cells, jobs=2, program=(sys.executable, '-c', END_TOGETHER))
  assert len(list(out.glob('*.told'))) == 2
  assert not list(out.glob('*.alone'))


def test_jobs_run_at_the_same_time_and_a_failing_one_stops_no_other(
  setting, capsys
):
  cells = plan.make_cells(**setting)
  meet = (sys.executable, '-c', MEET, fake_training.__file__)
  run_cells(cells[:2], jobs=2, program=(*meet, '2'))
  assert all(cell.finished for cell in cells[:2])
  assert read_json(cells[0].folder / plan.CELL_FILE)['jobs'] == 2

  fails = f'import sys\nif "selective" in sys.argv[-1]: sys.exit(7)\n{MEET}'
  program = (sys.executable, '-c', fails, fake_training.__file__, '3')
  with pytest.raises(CellError, match='1 of 2 runs failed: selective-seed1'):
    run_cells(cells[2:], jobs=2, program=program)
  assert cells[2].finished and not cells[3].finished
  assert 'selective-seed1: failed with exit code 7' in capsys.readouterr().err


def test_an_exception_ends_all_that_run(setting, monkeypatch):
  cells = plan.make_cells(**{**setting, 'gin_bindings': ['TRAIN_SECONDS = 20']})

  def interrupt(seconds):
    if all((cell.folder / 'starts.txt').exists() for cell in cells):
      raise KeyboardInterrupt

  monkeypatch.setattr(training.time, 'sleep', interrupt)
  with pytest.raises(KeyboardInterrupt):
    run_cells(cells, jobs=4, program=fake_training.PROGRAM)
  for cell in cells:  # The lock is the run's too: it is gone.
    with open(cell.folder / plan.LOCK_FILE) as lock:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not cell.finished


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_a_terminal_has_a_line_for_each_run_and_one_for_all(
  setting, monkeypatch
):
  monkeypatch.setattr(sys, 'stderr', Terminal())
  setting['gin_bindings'] = ['TRAIN_SECONDS = 0.3']
  cells = plan.make_cells(**setting)[:2]
  run_cells(cells[:1], program=fake_training.PROGRAM)
  sys.stderr.truncate(0)
  run_cells(cells, jobs=2, program=fake_training.PROGRAM)
  shown = sys.stderr.getvalue()
  assert '[1/2] baseline-seed0: had finished before' in shown
  assert re.search(r'selective-seed0: .*/40 .*loss \d', shown)
  assert re.search(r'all: .*/80 .*1 of 2 runs', shown)
  assert re.search(r'all: 100%.* 80/80 .*2 of 2 runs', shown)
