"""Causes faults and prints the counts; see the package."""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import sys
import tempfile
import time

from tools import torture, warm
from tools.torture import faults
from tools.torture.comparison import Comparison
from tools.torture.outcomes import Counts, compare, say
from tools.torture.search import Search
from tools.torture.training import LanguageModel, Training

_FAULTS_A_RUN = 4


class Torture:
  """Counts what faults do to commands."""

  def __init__(self, work: pathlib.Path, seed: int):
    """Stores the work folder, which must be empty, and the seed."""
    self.counts = Counts()
    self._rng = random.Random(seed)
    self._work = work

  def befall(self, kind: type[faults.Command], count: int) -> None:
    """Causes faults in commands of one kind, several in each until it ends."""
    whole = self._command(kind, self._folder(kind, 'whole'), mounted=False)
    whole.finish()
    kind.total, expected = whole.progress(), whole.result()
    goal, number = self.counts.faults + count, 0
    while self.counts.faults < goal:
      number += 1
      disk = self._folder(kind, f'disk{number}')
      with faults.disk(disk) as mounted:
        command = self._command(kind, disk, mounted=mounted)
        end = min(goal, self.counts.faults + _FAULTS_A_RUN)
        while self.counts.faults < end and command.code != 0:
          self._fault(command)
        command.finish()
        compare(disk.name, command.result(), expected, self.counts)

  def _fault(self, command) -> None:
    """Causes a fault; one that came after the end does not count."""
    possible = command.kinds()
    name = self._rng.choice(list(possible))
    in_time = possible[name]()
    self.counts.faults += in_time
    what = f'{name}{"" if in_time else ", too late"}'
    say(f'{command.folder.parent.name}: {what}')

  def _command(self, kind, folder, *, mounted):
    return kind(folder / 'run', self.counts, self._rng, mounted=mounted)

  def _folder(self, kind, name) -> pathlib.Path:
    folder = self._work / f'{kind.__name__.lower()}_{name}'
    folder.mkdir()
    return folder


def main() -> None:
  """Causes the faults and prints the counts."""
  parser = argparse.ArgumentParser(description=torture.__doc__)
  parser.add_argument('--faults', type=int, default=60)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  os.environ |= {
    'JAX_PLATFORMS': 'cpu',
    'SELECTIVE_T5X_ENGINE': 'embedded',
    'TF_CPP_MIN_LOG_LEVEL': '2',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  started = time.monotonic()
  with tempfile.TemporaryDirectory(prefix='torture_') as folder:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = f'{folder}/jax'
    warm.imports()
    run = Torture(pathlib.Path(folder), args.seed)
    fifth = args.faults // 5
    second = fifth if args.faults >= 20 else 0
    run.befall(Training, args.faults - 2 * fifth - second)
    if second:
      run.befall(LanguageModel, second)
    if fifth:
      Search.trained = pathlib.Path(folder) / 'training_whole' / 'run'
      run.befall(Search, fifth)
      run.befall(Comparison, fifth)
  say(f'{(time.monotonic() - started) / 60:.1f} minutes')
  print(json.dumps(dataclasses.asdict(run.counts)))
  sys.exit(int(run.counts.failed()))


if __name__ == '__main__':
  main()
