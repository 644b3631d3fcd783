"""Trains cells in processes, several at a time.

The training process holds the lock of its cell too, so the lock outlives a
killed comparison.
"""

import collections
import contextlib
import fcntl
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from typing import IO

from selective_t5x.comparisons.plan import (
  CELL_FILE,
  LOCK_FILE,
  LOG_FILE,
  Cell,
  check_folder,
  identity,
)
from selective_t5x.comparisons.progress import Progress
from selective_t5x.errors import INTERRUPTED, RunError
from selective_t5x.runs.files import write_json
from selective_t5x.runs.summary import write_summary

MAIN = (sys.executable, '-m', 'selective_t5x.main')

_POLL_SECONDS = 0.1
_TAIL_LINES = 15


class CellError(RunError):
  """Runs failed."""


def run_cells(
  cells: Sequence[Cell], *, jobs: int = 1, program: Sequence[str] = MAIN
) -> None:
  """Trains all unfinished cells; resumes those with a checkpoint.

  The output of a run goes to log.txt in its folder, and its progress is shown.
  If another process is training a cell, this one waits for it. A run that
  SIGTERM stopped is resumed at once if this process lives. A failed run leaves
  its folder as it is and does not stop the others. An exception such as Ctrl-C
  stops all running cells.

  Args:
    cells: the cells in the order in which they start.
    jobs: number of cells that run at a time.
    program: the command to start with a cell's arguments.

  Raises:
    CellError: runs failed; the reasons were printed. All other runs were
      finished first.
  """
  waiting, running, failed = collections.deque(cells), {}, []
  processes: set[subprocess.Popen] = set()
  with contextlib.ExitStack() as stack:
    progress = stack.enter_context(Progress(cells))
    while waiting or running:
      while waiting and len(running) < jobs:
        cell = waiting.popleft()
        running[cell.name] = run = _run(
          cell, jobs, program, progress, processes
        )
        stack.callback(run.close)
      for name, run in list(running.items()):
        try:
          next(run)
        except StopIteration as end:
          del running[name]
          if not end.value:
            failed.append(name)
      if running:
        time.sleep(_POLL_SECONDS)
  if failed:
    raise CellError(
      f'{len(failed)} of {len(cells)} runs failed: {", ".join(failed)}; the '
      'same command keeps the others and trains these again'
    )


def _run(
  cell: Cell,
  jobs: int,
  program: Sequence[str],
  progress: Progress,
  processes: set[subprocess.Popen],
) -> Generator[None, None, bool]:
  """Trains a cell and yields now and then; closing it stops all runs.

  Args:
    cell: the cell.
    jobs: number of cells that run at a time.
    program: the command to start with the cell's arguments.
    progress: shows the run.
    processes: those of all cells that have not been told to stop; its own is
      added and removed.

  Returns:
    whether the cell is finished.
  """
  cell.folder.mkdir(parents=True, exist_ok=True)
  with open(cell.folder / LOCK_FILE, 'w') as lock:
    if not _locks(lock):
      progress.say(
        f'{cell.name}: another process is training it; waiting for that'
      )
      while not _locks(lock):
        yield
    check_folder(cell)
    if cell.finished:
      progress.end(cell, 'had finished before')
      return True
    log_file = cell.folder / LOG_FILE
    progress.say(f'{cell.name}: training; its log is {log_file}')
    write_json(cell.folder / CELL_FILE, {**identity(cell), 'jobs': jobs})
    while (
      code := (yield from _start(cell, program, lock, progress, processes))
    ) == INTERRUPTED:
      progress.say(f'{cell.name}: saved at SIGTERM and resumed')
    if code:
      lines = log_file.read_text(errors='replace').splitlines()
      tail = '\n'.join(f'  {line}' for line in lines[-_TAIL_LINES:])
      progress.end(
        cell,
        f'failed with exit code {code}; the end of {log_file}:\n{tail}',
      )
      return False
    write_summary(cell.folder)
    progress.end(cell, 'finished')
    return True


def _start(
  cell: Cell,
  program: Sequence[str],
  lock: IO,
  progress: Progress,
  processes: set[subprocess.Popen],
) -> Generator[None, None, int]:
  """Starts the run of a cell once, for `_run`; returns its exit code."""
  with open(cell.folder / LOG_FILE, 'ab') as log:
    process = subprocess.Popen(
      [*program, *cell.arguments],
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=log,
      pass_fds=[lock.fileno()],
    )
  processes.add(process)
  try:
    with progress.line(cell) as line:
      while process.poll() is None:
        yield
        line.update()
  finally:
    if process.poll() is None:
      # All of them before this one is waited for: a run saves at SIGTERM, and
      # the comparison may be killed before it has waited for the others. Each
      # gets one signal: a second one would not let it end in order.
      while processes:
        processes.pop().terminate()
      process.wait()
    processes.discard(process)
  return process.returncode


def _locks(file: IO) -> bool:
  """Tries to lock a file; returns whether it succeeded."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  return True
