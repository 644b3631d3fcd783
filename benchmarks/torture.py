"""Breaks runs in every way that it knows, starts them again, and counts.

  python -m benchmarks.torture --faults=60

Tiny real runs of training, of a comparison and of a search for budgets are
killed (SIGKILL), terminated (SIGTERM), started twice, given a full disk, and
their newest checkpoint is truncated or has a bit flipped; the moments and the
files are drawn with --seed. Each is then started again, until it is finished,
and compared with an undisturbed one: parameters, optimiser state and metrics
have to be equal bit for bit, times apart.

Training and search are started by forking a process that has done the imports
alone (benchmarks/warm.py); one undisturbed run is also started as users do and
has to be equal. The comparison is started as users do. A full disk is a tmpfs
where one can be mounted, else RLIMIT_FSIZE.

The last line is JSON:
  faults: how many were caused.
  lost_checkpoints: whole checkpoints that were the newest before a start and
    were gone, with none newer, after it.
  diverged_resumes: runs that were not equal to the undisturbed one in the end,
    or ended with an exit code that the fault does not explain.
  hangs: processes that did not end in time.
  tracebacks_shown_to_user: processes that printed one.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from benchmarks import warm

_STEPS = 60
_DEADLINE = 1800  # seconds for one process, on a machine with other work
_DISK_BYTES = 32 << 20
_INTERRUPTED = 75
_CONFIGS = (
  ('gin/experiments/variable_assignment.gin', ()),
  (
    'gin/experiments/wikipedia_sample_lm.gin',
    ("--gin.vocabularies.Choice.kind='bytes'",),
  ),
)
_MAIN = 'selective_t5x.main'
_SEARCH = 'selective_t5x.pruning.search'


@dataclasses.dataclass
class Counts:
  """What the last line says."""

  faults: int = 0
  lost_checkpoints: int = 0
  diverged_resumes: int = 0
  hangs: int = 0
  tracebacks_shown_to_user: int = 0


# What is true of a folder.


def newest_whole(folder: pathlib.Path) -> int:
  """Returns the step of the newest checkpoint that is whole, -1 for none."""
  from t5x import integrity

  steps = [
    int(path.name.partition('_')[2])
    for path in folder.glob('checkpoint_*')
    if re.fullmatch(r'checkpoint_\d+', path.name)
    and (path / integrity.FILE).exists()
    and not integrity.problem(path)
  ]
  return max(steps, default=-1)


def rows(file: pathlib.Path) -> list[dict[str, object]]:
  """Returns the lines of a metrics file without those that tell times."""
  if not file.exists():
    return []
  return [
    {k: v for k, v in json.loads(line).items() if not k.startswith('timing/')}
    for line in file.read_text().splitlines()
  ]


def result(
  folder: pathlib.Path, read_state: Callable[[pathlib.Path], dict] | None = None
) -> dict[str, object]:
  """Returns all that has to be equal of a run: metrics, and the last state."""
  files = sorted(folder.rglob('metrics.jsonl'))
  found = {str(f.relative_to(folder)): rows(f) for f in files}
  return found | (read_state or _forked_digests)(folder)


def _forked_digests(folder: pathlib.Path) -> dict[str, str]:
  """Returns the digests of the last checkpoint: JAX is to stay unused here."""
  file = folder.with_name(f'{folder.name}.digests')
  process = os.fork()
  if not process:
    try:
      file.write_text(json.dumps(digests_of(folder / f'checkpoint_{_STEPS}')))
    except Exception as error:
      file.write_text(json.dumps({'error': str(error)[:200]}))
    finally:
      os._exit(0)
  os.waitpid(process, 0)
  return json.loads(file.read_text())


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


def damage(file: pathlib.Path, kind: str, rng: random.Random) -> None:
  """Breaks a file."""
  content = bytearray(file.read_bytes())
  if kind == 'truncate':
    file.write_bytes(content[: rng.randrange(max(1, len(content)))])
  elif content:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
  else:
    file.unlink()


# Processes.


def wait(process: int, counts: Counts, log: pathlib.Path, seconds=_DEADLINE):
  """Waits for a process and looks at what it printed.

  Returns:
    the exit code, negative for a signal; None, and counted, if it hangs: then
    it is killed with its session.
  """
  deadline, code = time.monotonic() + seconds, None
  while code is None and time.monotonic() < deadline:
    ended, status = os.waitpid(process, os.WNOHANG)
    if ended:
      code = os.waitstatus_to_exitcode(status)
    else:
      time.sleep(0.02)
  if code is None:
    counts.hangs += 1
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
  if log.exists() and 'Traceback (most' in log.read_text(errors='replace'):
    counts.tracebacks_shown_to_user += 1
    kept = log.with_name(f'traceback_{time.time_ns()}.txt')
    shutil.copy(log, kept)
    _say(f'  a traceback: {kept}')
  return code


def ended(process: int) -> bool:
  """Tells whether a child has ended; it can still be waited for."""
  flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
  return os.waitid(os.P_PID, process, flags) is not None


def until(process: int, moment: Callable[[], bool]) -> None:
  """Waits for a moment in a process's life, or for its end."""
  deadline = time.monotonic() + _DEADLINE
  while not ended(process) and not moment() and time.monotonic() < deadline:
    time.sleep(0.005)


@contextlib.contextmanager
def disk(folder: pathlib.Path) -> Iterator[bool]:
  """Mounts a small disk; says whether that is allowed here."""
  folder.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', f'size={_DISK_BYTES}', 'tmpfs', folder]
  mounted = not subprocess.run(
    mount, capture_output=True, check=False
  ).returncode
  try:
    yield mounted
  finally:
    if mounted:
      subprocess.run(['umount', '-l', folder], check=False)


# Training.


class Training:
  """One run in its folder, that faults befall."""

  def __init__(self, config, folder, work, counts, rng, mounted=False):
    self._config = config
    self._folder = folder
    self._counts = counts
    self._rng = rng
    self._mounted = mounted
    self._log = work / f'{folder.name}.log'

  def arguments(self) -> list[str]:
    """Returns the flags of the command line."""
    experiment, more = self._config
    return [
      '--run_mode=train',
      f'--gin_file={experiment}',
      '--gin_file=gin/attention/selective.gin',
      '--gin_file=gin/test/tiny.gin',
      f"--gin.MODEL_DIR='{self._folder}'",
      f'--gin.TRAIN_STEPS={_STEPS}',
      '--gin.CHECKPOINT_PERIOD=10',
      '--gin.EVAL_PERIOD=20',
      '--gin.STATS_PERIOD=5',
      '--gin.DROPOUT_RATE=0.1',
      *more,
    ]

  def start(self, **limits) -> int:
    """Starts the run, see `warm.start`; returns the process's id."""
    return warm.start(_MAIN, self.arguments(), self._log, **limits)

  def finish(self) -> None:
    """Runs to the end; it has to be reached."""
    self._end(self.start(), (0,), newest_whole(self._folder))

  def fault(self, kind: str) -> None:
    """Causes one fault, lets the process end, and looks at what is left."""
    whole = newest_whole(self._folder)
    if kind in ('truncate', 'corrupt'):
      whole = self._damage(kind)
      self._stop('kill', (0, -signal.SIGKILL), whole)
    elif kind == 'kill':
      self._stop(kind, (0, -signal.SIGKILL), whole)
    elif kind == 'term':
      self._stop(kind, (0, _INTERRUPTED), whole)
    elif kind == 'full disk':
      self._full_disk(whole)
    elif kind == 'twice':
      self._twice(whole)
    self._counts.faults += 1

  def _end(self, process, codes, whole) -> None:
    code = wait(process, self._counts, self._log)
    if code is not None and code not in codes:
      self._counts.diverged_resumes += 1
      kept = self._log.with_name(f'exit_{code}_{time.time_ns()}.txt')
      shutil.copy(self._log, kept)
      _say(f'  exit code {code}, expected one of {codes}: {kept}')
    if newest_whole(self._folder) < whole:
      self._counts.lost_checkpoints += 1
      _say(f'  checkpoint_{whole} is lost')

  def _moment(self) -> Callable[[], bool]:
    """Draws when a fault comes: at a step, or while the run starts."""
    if self._rng.random() < 0.3:
      at = time.monotonic() + self._rng.uniform(0, 6)
      return lambda: time.monotonic() > at
    done = [row['step'] for row in rows_of(self._folder)]
    step = self._rng.randint(min([*done[-1:], _STEPS]) if done else 1, _STEPS)
    pause = self._rng.uniform(0, 0.1)

    def reached():
      if any(row['step'] >= step for row in rows_of(self._folder)):
        time.sleep(pause)
        return True
      return False

    return reached

  def _stop(self, kind, codes, whole) -> None:
    process = self.start()
    until(process, self._moment())
    if not ended(process):
      number = signal.SIGKILL if kind == 'kill' else signal.SIGTERM
      os.kill(process, number)
    self._end(
      process, (*codes, -signal.SIGTERM) if kind == 'term' else codes, whole
    )

  def _damage(self, kind) -> int:
    """Breaks the newest checkpoint; returns the newest that is left whole."""
    newest = self._folder / f'checkpoint_{newest_whole(self._folder)}'
    files = [f for f in newest.glob('*/**/*') if f.is_file()]
    files = [f for f in files if f.name != 'commit_success.txt']
    damage(self._rng.choice(files), kind, self._rng)
    return newest_whole(self._folder)

  def can_be_damaged(self) -> bool:
    """Tells whether a whole checkpoint would be left."""
    steps = list(self._folder.glob('checkpoint_*'))
    return len(steps) > 1 and newest_whole(self._folder) >= 0

  def _full_disk(self, whole) -> None:
    if not self._mounted:
      limit = self._rng.randint(1 << 12, 1 << 16)
      self._end(self.start(max_file_bytes=limit), (0, 1), whole)
      return
    ballast = self._folder.parent / 'ballast'
    free = shutil.disk_usage(self._folder.parent).free
    with ballast.open('wb') as file:
      left = self._rng.randint(0, 1 << 18)
      os.posix_fallocate(file.fileno(), 0, max(1, free - left))
    try:
      # 2: it could not even make its folder or its record.
      self._end(self.start(), (0, 1, 2), whole)
    finally:
      ballast.unlink()
    left = list(self._folder.glob('*orbax-checkpoint-tmp*'))
    if left:
      _say(f'  left on the full disk: {left}')
      self._counts.diverged_resumes += 1

  def _twice(self, whole) -> None:
    first = self.start()
    until(first, (self._folder / '.lock').exists)
    if not ended(first):
      log = self._log.with_suffix('.second.log')
      second = warm.start(_MAIN, self.arguments(), log)
      code = wait(second, self._counts, log)
      refused = code == 2 and 'is training there' in log.read_text()
      # The first may have ended in between.
      if not refused and not (ended(first) and code == 0):
        self._counts.diverged_resumes += 1
        _say(f'  a second trainer ended with {code}: {log.read_text()[-500:]}')
    self._end(first, (0,), whole)


def rows_of(folder: pathlib.Path) -> list[dict[str, object]]:
  """Returns the train metrics so far; the last line may be half written."""
  file = folder / 'train' / 'metrics.jsonl'
  found = []
  with contextlib.suppress(OSError, json.JSONDecodeError):
    for line in file.read_text().splitlines():
      found.append(json.loads(line))
  return found


def train(faults: int, counts: Counts, rng: random.Random, work) -> None:
  """Faults that befall training runs, some to each run."""
  with disk(work / 'disk') as mounted:
    references = {}
    done = number = 0
    while done < faults:
      config = _CONFIGS[number % len(_CONFIGS)]
      if config not in references:
        references[config] = _undisturbed(config, counts, rng, work, number)
      folder = work / 'disk' / f'run{number}'
      run = Training(config, folder, work, counts, rng, mounted)
      for _ in range(min(faults - done, 6)):
        kinds = ['kill', 'kill', 'term', 'term', 'full disk', 'twice']
        if run.can_be_damaged():
          kinds += ['truncate', 'corrupt', 'truncate', 'corrupt']
        kind = rng.choice(kinds)
        _say(f'training {number}: {kind}')
        run.fault(kind)
        done += 1
      run.finish()
      compare_results(f'training {number}', folder, references[config], counts)
      shutil.rmtree(folder)
      number += 1


def _undisturbed(config, counts, rng, work, number):
  folder = work / 'disk' / f'whole{number}'
  run = Training(config, folder, work, counts, rng)
  run.finish()
  expected = result(folder)
  if number == 0:  # Forked or not, it is the same run.
    shutil.rmtree(folder)
    subprocess.run(
      [sys.executable, '-m', _MAIN, *run.arguments()],
      check=True,
      capture_output=True,
    )
    compare_results('started by python -m', folder, expected, counts)
  shutil.rmtree(folder)
  return expected


def compare_results(name, folder, expected, counts, read_state=None) -> None:
  """Counts a run that is not equal to the undisturbed one."""
  found = result(folder, read_state)
  differ = [k for k in expected if found.get(k) != expected[k]]
  if differ:
    counts.diverged_resumes += 1
    _say(f'  {name} differs in {differ[:3]} {found.get("error", "")}')


# The search for budgets.


def search(faults: int, counts: Counts, rng: random.Random, work) -> None:
  """Faults that befall a search."""
  folder = work / 'trained'
  Training(_CONFIGS[1], folder, work, counts, rng).finish()

  def start(output):
    args = [
      f'--checkpoint={folder}',
      '--gin_file=gin/pruning/selective.gin',
      f'--output_dir={output}',
      '--tolerance=0.5',
      '--tuning_batches=2',
      '--report_batches=1',
    ]
    return warm.start(_SEARCH, args, work / 'search.log')

  def finish(output):
    if wait(start(output), counts, work / 'search.log') != 0:
      counts.diverged_resumes += 1
    return {
      name: (output / name).read_text()
      for name in ('search.json', 'budgets.gin')
    }

  before = time.monotonic()
  expected = finish(work / 'searched')
  took = time.monotonic() - before
  output = work / 'search'
  for _ in range(faults):
    kind = rng.choice(['kill', 'term'])
    _say(f'search: {kind}')
    process = start(output)
    at = time.monotonic() + rng.uniform(0.2, 1) * took
    until(process, lambda at=at: time.monotonic() > at)
    if not ended(process):
      os.kill(process, signal.SIGKILL if kind == 'kill' else signal.SIGTERM)
    code = wait(process, counts, work / 'search.log')
    if code not in (0, None, -signal.SIGKILL, -signal.SIGTERM, _INTERRUPTED):
      counts.diverged_resumes += 1
      _say(f'  exit code {code}: {(work / "search.log").read_text()[-500:]}')
    counts.faults += 1
  if finish(output) != expected:
    counts.diverged_resumes += 1
    _say('  the search differs')


# A comparison.


def compare(faults: int, counts: Counts, rng: random.Random, work) -> None:
  """Faults that befall a comparison or the run that it has started."""

  def start(output):
    args = [
      '--gin_file=gin/experiments/variable_assignment.gin',
      '--gin_file=gin/test/tiny.gin',
      '--variant=baseline=gin/attention/baseline.gin',
      '--variant=selective=gin/attention/selective.gin',
      f'--output_dir={output}',
      '--gin.TRAIN_STEPS=20',
      '--gin.CHECKPOINT_PERIOD=5',
      '--gin.EVAL_PERIOD=10',
    ]
    log = (work / 'compare.log').open('wb')
    return subprocess.Popen(
      [sys.executable, '-m', 'selective_t5x.compare', *args],
      stdout=log,
      stderr=log,
      start_new_session=True,
    ).pid

  def finish(output):
    if wait(start(output), counts, work / 'compare.log') != 0:
      counts.diverged_resumes += 1
    return {
      str(f.relative_to(output)): rows(f)
      for f in sorted(output.rglob('metrics.jsonl'))
    }

  before = time.monotonic()
  expected = finish(work / 'compared')
  took = time.monotonic() - before
  output = work / 'comparison'
  for _ in range(faults):
    kind = rng.choice(['kill', 'term', 'kill the run', 'term the run'])
    _say(f'comparison: {kind}')
    process = start(output)
    at = time.monotonic() + rng.uniform(0.1, 0.9) * took
    until(process, lambda at=at: time.monotonic() > at)
    children = pathlib.Path(f'/proc/{process}/task/{process}/children')
    target = process
    if 'the run' in kind and children.exists():
      target = int((children.read_text().split() or [process])[0])
    if not ended(process):
      with contextlib.suppress(ProcessLookupError):
        number = signal.SIGKILL if 'kill' in kind else signal.SIGTERM
        os.kill(target, number)
    code = wait(process, counts, work / 'compare.log')
    if code not in (0, 1, None, -signal.SIGKILL, -signal.SIGTERM, _INTERRUPTED):
      counts.diverged_resumes += 1
      _say(f'  exit code {code}: {(work / "compare.log").read_text()[-500:]}')
    counts.faults += 1
  if finish(output) != expected:
    counts.diverged_resumes += 1
    _say('  the comparison differs')


def _say(line: str) -> None:
  print(f'{time.strftime("%H:%M:%S")} {line}', flush=True)


def main() -> None:
  """Causes the faults and prints the counts."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--faults', type=int, default=60)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  os.environ |= {
    'JAX_PLATFORMS': 'cpu',
    'SELECTIVE_T5X_ENGINE': 'embedded',
    'TF_CPP_MIN_LOG_LEVEL': '2',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  counts, rng = Counts(), random.Random(args.seed)
  searches = comparisons = args.faults // 7
  started = time.monotonic()
  with tempfile.TemporaryDirectory(prefix='torture_') as folder:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = f'{folder}/jax'
    warm.imports()
    work = pathlib.Path(folder)
    train(args.faults - searches - comparisons, counts, rng, work)
    if searches:
      search(searches, counts, rng, work)
      compare(comparisons, counts, rng, work)
  _say(f'{(time.monotonic() - started) / 60:.1f} minutes')
  print(json.dumps(dataclasses.asdict(counts)))
  sys.exit(int(any(v for k, v in vars(counts).items() if k != 'faults')))


if __name__ == '__main__':
  main()
