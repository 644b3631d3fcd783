"""A comparison, and faults of it or of its current run."""

import functools
import pathlib
import signal

from tools.torture import faults, outcomes


class Comparison(faults.Command):
  """Two variants, one seed."""

  module = 'selective_t5x.compare'

  def arguments(self):
    """Returns its flags."""
    return [
      '--gin_file=gin/experiments/variable_assignment.gin',
      '--gin_file=gin/test/tiny.gin',
      '--variant=baseline=gin/attention/baseline.gin',
      '--variant=selective=gin/attention/selective.gin',
      f'--output_dir={self.folder}',
      '--examples=0',
      '--gin.TRAIN_STEPS=20',
      '--gin.CHECKPOINT_PERIOD=5',
      '--gin.EVAL_PERIOD=10',
    ]

  def saved(self):
    """Returns {what must not be lost: how far it is saved}."""
    return {run.name: outcomes.newest_whole(run) for run in self._runs()}

  def progress(self):
    """Returns the progress."""
    files = (run / 'train' / 'metrics.jsonl' for run in self._runs())
    return sum(len(outcomes.rows(file)) for file in files)

  def result(self):
    """Returns everything that must be equal at the end."""
    reported = (self.folder / 'report.html').exists()
    return outcomes.result(self.folder) | {'reported': reported}

  def logs(self):
    """Returns the files with the output that the user would see."""
    return [self.log, *(run / 'log.txt' for run in self._runs())]

  def kinds(self):
    """Returns the kinds of faults that are possible now."""
    signal_run = functools.partial(
      self.stop, target=_training_process, codes=(0, 1)
    )
    by_kind = super().kinds() | {
      'kill its run': lambda: signal_run(signal.SIGKILL),
      'term its run': lambda: signal_run(signal.SIGTERM),
    }
    if self._interrupted():
      by_kind['truncate'] = lambda: self._damaged('truncate')
      by_kind['corrupt'] = lambda: self._damaged('corrupt')
    return by_kind

  def start_twice(self):
    """Starts it again while it runs: both wait for each other's runs."""
    saved = self.saved()
    first = self.start()
    self.until(first)
    in_time = not outcomes.ended(first)
    log = self.log.with_suffix('.second.log')
    second = self.start(log)
    self.end(first, (0,), saved)
    self.end(second, (0,), saved)
    return in_time

  def _damaged(self, kind: str) -> bool:
    """Breaks the newest checkpoint of the interrupted run."""
    run = self._interrupted()[0]
    newest = run / f'checkpoint_{outcomes.newest_whole(run)}'
    faults.damage_checkpoint(newest, kind, self.rng)
    self.run((0,))
    if 'Resuming from' not in (run / 'log.txt').read_text(errors='replace'):
      self.counts.add('diverged_resumes', f'no warning of {newest}')
    return True

  def _runs(self) -> list[pathlib.Path]:
    return sorted(self.folder.glob('*-seed0'))

  def _interrupted(self) -> list[pathlib.Path]:
    """Returns the unfinished runs with a checkpoint to spare."""
    return [
      run
      for run in self._runs()
      if not (run / 'summary.json').exists() and len(outcomes.whole(run)) > 1
    ]


def _training_process(process: int) -> int | None:
  """Returns the process that a comparison has started, or None."""
  children = pathlib.Path(f'/proc/{process}/task/{process}/children')
  return next(map(int, children.read_text().split()), None)
