"""Faults of a command, one at a time."""

import abc
import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from selective_t5x.errors import INTERRUPTED
from tools import warm
from tools.torture import outcomes
from tools.torture.outcomes import say

_DISK_BYTES = 64 << 20
_STARTING_SECONDS = 8
_REAL_START_EVERY = 8
_KILLED, _TERMINATED = -signal.SIGKILL, -signal.SIGTERM


class Command(abc.ABC):
  """A command of the suite in its folder, started again and again.

  Attributes:
    module: the module that `python -m` runs.
    total: the final `progress`, known from an undisturbed command.
    code: the last exit code; None before the first and after a hang.
  """

  module: str
  total = 1
  code: int | None = None
  _starts = 0

  def __init__(
    self,
    folder: pathlib.Path,
    counts: outcomes.Counts,
    rng: random.Random,
    *,
    mounted: bool,
  ):
    """Stores its folder, which is a disk of its own if `mounted`."""
    self.folder = folder
    self.counts = counts
    self.rng = rng
    self._mounted = mounted
    # The log is beside the disk, which may be full.
    self.log = folder.parent.with_suffix('.log')
    self._tracebacks = outcomes.Tracebacks(counts)

  @abc.abstractmethod
  def arguments(self) -> list[str]:
    """Returns its flags."""

  @abc.abstractmethod
  def saved(self) -> dict[str, int]:
    """Returns {what must not be lost: how far it is saved}."""

  @abc.abstractmethod
  def progress(self) -> int:
    """Returns the progress of the command."""

  @abc.abstractmethod
  def result(self) -> dict[str, object]:
    """Returns everything that must be equal at the end."""

  def kinds(self) -> dict[str, Callable[[], bool]]:
    """Returns {kind: function} of the kinds of faults that are possible now.

    A function causes such a fault and tells whether it came in time.
    """
    return {
      'kill': lambda: self.stop(signal.SIGKILL),
      'term': lambda: self.stop(signal.SIGTERM),
      'full disk': self.full_disk,
      'restart': self.start_twice,
    }

  def logs(self) -> list[pathlib.Path]:
    """Returns the files with the output that the user would see."""
    return [self.log]

  def start(self, log: pathlib.Path | None = None, **limits) -> int:
    """Starts it; returns the process's id.

    Args:
      log: file of its output, instead of self.log.
      **limits: see `warm.start`.
    """
    log = log or self.log
    Command._starts += 1
    if limits or Command._starts % _REAL_START_EVERY:
      return warm.start(self.module, self.arguments(), log, **limits)
    say(f'  start {Command._starts} is python -m {self.module}')
    with log.open('wb') as file:
      return subprocess.Popen(
        [sys.executable, '-m', self.module, *self.arguments()],
        stdout=file,
        stderr=file,
        start_new_session=True,
      ).pid

  def finish(self) -> None:
    """Runs to the end, which must be reached."""
    if self.code != 0:
      self.run((0,))

  def run(self, codes: Sequence[int], **limits) -> int | None:
    """Runs it once, see `end`."""
    saved = self.saved()
    return self.end(self.start(**limits), codes, saved)

  def end(
    self, process: int, codes: Sequence[int], saved: dict[str, int]
  ) -> int | None:
    """Waits for a process to end, and checks its files.

    Args:
      process: a process of this command.
      codes: the expected exit codes.
      saved: `saved` before the process started.

    Returns:
      the exit code, or None if the process had to be killed.
    """
    self.code = code = outcomes.wait(process, self.counts)
    self._tracebacks.look(self.logs())
    if code is not None and code not in codes:
      log_end = self.log.read_text(errors='replace')[-1000:]
      self.counts.add(
        'diverged_resumes', f'exit code {code}, expected {codes}: {log_end}'
      )
    if lost := self._lost(saved) and self._lost(saved):
      self.counts.add('lost_checkpoints', f'{lost} of {saved}')
    return code

  def _lost(self, saved) -> list[str]:
    """Returns what was lost; it checks twice, as a file may be replaced."""
    now = self.saved()
    return [name for name in saved if now.get(name, -1) < saved[name]]

  def until(self, process: int) -> None:
    """Waits for a random moment of a process, or for its end."""
    by_time = self.rng.random() < 0.3
    at = time.monotonic() + self.rng.uniform(0, _STARTING_SECONDS)
    reached = self.rng.randint(min(self.progress() + 1, self.total), self.total)
    pause = self.rng.uniform(0, 0.2)
    while not outcomes.ended(process):
      if by_time and time.monotonic() > at:
        return
      if not by_time and self.progress() >= reached:
        time.sleep(pause)
        return
      time.sleep(0.01)

  def stop(
    self,
    number: signal.Signals,
    target: Callable[[int], int | None] = lambda process: process,
    codes: Sequence[int] = (0, _KILLED, _TERMINATED, INTERRUPTED),
  ) -> bool:
    """Sends a signal to the command, or to a process that it has started."""
    saved = self.saved()
    process = self.start()
    self.until(process)
    hit = None if outcomes.ended(process) else target(process)
    if hit:
      with contextlib.suppress(ProcessLookupError):
        os.kill(hit, number)
    code = self.end(process, codes, saved)
    return bool(hit) and (code != 0 or hit != process)

  def full_disk(self) -> bool:
    """Runs it with almost no room on its disk, from the start or later."""
    if not self._mounted:
      limit = self.rng.randint(1 << 12, 1 << 16)
      return self.run((0, 1, 2), max_file_bytes=limit) != 0
    saved = self.saved()
    ballast = self.folder.parent / 'ballast'
    process = None
    if self.rng.random() < 0.5:
      process = self.start()
      self.until(process)
    fill(ballast, self.rng.randint(0, 1 << 17))
    try:
      # 2: it could not even create its folder or its record.
      code = self.end(process or self.start(), (0, 1, 2), saved)
    finally:
      ballast.unlink()
    remains = [str(f) for f in self.folder.rglob('*orbax-checkpoint-tmp*')]
    if remains:
      self.counts.add('diverged_resumes', f'left on the full disk: {remains}')
    return code != 0

  def start_twice(self) -> bool:
    """Starts it again while it runs: the second is refused."""
    saved = self.saved()
    first = self.start()
    while not outcomes.ended(first) and not (self.folder / '.lock').exists():
      time.sleep(0.01)
    log = self.log.with_suffix('.second.log')
    second = self.start(log)
    code = outcomes.wait(second, self.counts)
    self._tracebacks.look([log])
    refused = code == 2 and 'is using the folder' in log.read_text()
    # The first may have ended in between.
    if not refused and not (outcomes.ended(first) and code == 0):
      log_end = log.read_text()[-500:]
      self.counts.add('diverged_resumes', f'the second ended {code}: {log_end}')
    self.end(first, (0,), saved)
    return refused


def damage(file: pathlib.Path, kind: str, rng: random.Random) -> None:
  """Truncates a file, or flips a bit of it."""
  content = bytearray(file.read_bytes())
  if kind == 'truncate':
    file.write_bytes(content[: rng.randrange(max(1, len(content)))])
  elif content:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
  else:
    file.unlink()


def damage_checkpoint(
  checkpoint: pathlib.Path, kind: str, rng: random.Random
) -> None:
  """Breaks one of the files with a checksum in a checkpoint."""
  files = sorted(f for f in checkpoint.glob('*/**/*') if f.is_file())
  files = [f for f in files if f.name != 'commit_success.txt']
  damage(rng.choice(files), kind, rng)


def fill(ballast: pathlib.Path, free_bytes: int) -> None:
  """Fills a disk except for some bytes."""
  chunk = bytes(1 << 16)
  with ballast.open('wb', buffering=0) as file:
    with contextlib.suppress(OSError):
      while file.write(chunk):
        pass
    file.truncate(max(0, file.tell() - free_bytes))


@contextlib.contextmanager
def disk(folder: pathlib.Path) -> Iterator[bool]:
  """Mounts a small disk on a folder; yields whether that is allowed here."""
  mount = ['mount', '-t', 'tmpfs', '-o', f'size={_DISK_BYTES}', 'tmpfs', folder]
  mounted = not subprocess.run(
    mount, capture_output=True, check=False
  ).returncode
  say('the full disk is ' + ('a tmpfs' if mounted else 'RLIMIT_FSIZE'))
  try:
    yield mounted
  finally:
    if mounted:
      subprocess.run(['umount', '-l', folder], check=False)
