"""Checks after a fault, and their counts."""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import signal
import time

_DEADLINE = 900  # seconds for one process, on a machine with other load
_TRACEBACK = 'Traceback (most recent'


@dataclasses.dataclass
class Counts:
  """The counts of the last line."""

  faults: int = 0
  lost_checkpoints: int = 0
  diverged_resumes: int = 0
  hangs: int = 0
  tracebacks_shown_to_user: int = 0

  def add(self, name: str, why: str) -> None:
    """Counts one, and prints the reason."""
    setattr(self, name, getattr(self, name) + 1)
    say(f'  {name}: {why}')

  def failed(self) -> bool:
    """Tells whether anything but faults was counted."""
    return any(v for k, v in vars(self).items() if k != 'faults')


def say(line: str) -> None:
  """Prints a line with the time of day."""
  print(f'{time.strftime("%H:%M:%S")} {line}', flush=True)


def whole(folder: pathlib.Path) -> list[int]:
  """Returns the steps of the complete checkpoints, in order."""
  from t5x import integrity

  return sorted(
    int(path.name.partition('_')[2])
    for path in folder.glob('checkpoint_*')
    if re.fullmatch(r'checkpoint_\d+', path.name)
    and (path / integrity.FILE).exists()
    and not integrity.problem(path)
  )


def newest_whole(folder: pathlib.Path) -> int:
  """Returns the step of the newest complete checkpoint; -1: none."""
  return max(whole(folder), default=-1)


def rows(file: pathlib.Path) -> list[dict[str, object]]:
  """Returns the lines of a metrics file, without times.

  A run may be writing it: an incomplete last line is left out.
  """
  lines = file.read_text().splitlines(keepends=True) if file.exists() else []
  return [
    {k: v for k, v in json.loads(x).items() if not k.startswith('timing/')}
    for x in lines
    if x.endswith('\n')
  ]


def result(folder: pathlib.Path) -> dict[str, object]:
  """Returns what must be equal of the runs in a folder: metrics and states.

  Returns:
    {metrics file: its rows} and {newest checkpoint of each run: {array:
    digest}}, by their paths in the folder.
  """
  files = sorted(folder.rglob('metrics.jsonl'))
  results = {str(file.relative_to(folder)): rows(file) for file in files}
  for run in sorted({f.parent for f in folder.rglob('checkpoint_*')}):
    newest = run / f'checkpoint_{newest_whole(run)}'
    results[str(newest.relative_to(folder))] = _digests(newest)
  return results


def _digests(checkpoint: pathlib.Path) -> dict[str, str]:
  """Returns {array: digest}, read by a child: JAX must stay unused here."""
  out, to_parent = os.pipe()
  process = os.fork()
  if not process:
    try:
      answer = digests_of(checkpoint)
    except Exception as error:
      answer = {'error': str(error)[:200]}
    with os.fdopen(to_parent, 'w') as file:
      json.dump(answer, file)
    os._exit(0)
  os.close(to_parent)
  with os.fdopen(out) as file:
    text = file.read()
  os.waitpid(process, 0)
  return json.loads(text)


def digests_of(checkpoint: pathlib.Path) -> dict[str, str]:
  """Returns {array: dtype, shape and SHA-256} of a checkpoint."""
  import jax
  import numpy as np

  from t5x import checkpoints

  reader = checkpoints.OrbaxReader(str(checkpoint))
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  arrays = reader.read({name: (device, None) for name in reader.arrays()})
  return {
    name: f'{x.dtype} {x.shape} '
    + hashlib.sha256(np.asarray(x).tobytes()).hexdigest()
    for name, x in arrays.items()
  }


def compare(name: str, results: dict, expected: dict, counts: Counts) -> None:
  """Counts differences from the undisturbed command."""
  keys = dict.fromkeys([*expected, *results])
  differ = [key for key in keys if results.get(key) != expected.get(key)]
  if differ:
    counts.add('diverged_resumes', f'{name} differs in {differ[:3]}')


def ended(process: int) -> bool:
  """Tells whether a child has ended; it can still be waited for."""
  flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
  return os.waitid(os.P_PID, process, flags) is not None


def wait(process: int, counts: Counts, seconds: float = _DEADLINE):
  """Waits for a process.

  Returns:
    its exit code, negative for a signal; None if it hangs: then it is counted
    and killed with its session.
  """
  deadline = time.monotonic() + seconds
  while not ended(process) and time.monotonic() < deadline:
    time.sleep(0.02)
  hangs = not ended(process)
  if hangs:
    counts.add('hangs', f'process {process}, for {seconds} s')
    os.killpg(process, signal.SIGKILL)
  code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
  return None if hangs else code


class Tracebacks:
  """Counts the tracebacks in log files, each one once."""

  def __init__(self, counts: Counts):
    """Stores the counts."""
    self._counts = counts
    self._tracebacks: dict[pathlib.Path, int] = {}

  def look(self, logs: list[pathlib.Path]) -> None:
    """Looks at log files; they may have grown, or be new ones."""
    for log in logs:
      text = log.read_text(errors='replace') if log.exists() else ''
      count, before = text.count(_TRACEBACK), self._tracebacks.get(log, 0)
      self._tracebacks[log] = count
      if count > before:
        at = text.rindex(_TRACEBACK)
        self._counts.add('tracebacks_shown_to_user', text[at : at + 4000])
