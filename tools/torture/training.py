"""A training run, and its faults."""

from tools.torture import faults, outcomes

STEPS = 40


class Training(faults.Command):
  """One run in its folder."""

  module = 'selective_t5x.main'
  total = STEPS
  experiment = ('--gin_file=gin/experiments/variable_assignment.gin',)

  def arguments(self):
    """Returns its flags."""
    return [
      '--run_mode=train',
      *self.experiment,
      '--gin_file=gin/attention/selective.gin',
      '--gin_file=gin/test/tiny.gin',
      f"--gin.MODEL_DIR='{self.folder}'",
      f'--gin.TRAIN_STEPS={STEPS}',
      '--gin.CHECKPOINT_PERIOD=10',
      '--gin.EVAL_PERIOD=20',
      '--gin.STATS_PERIOD=5',
      '--gin.DROPOUT_RATE=0.1',
    ]

  def saved(self):
    """Returns {what must not be lost: how far it is saved}."""
    return {self.folder.name: outcomes.newest_whole(self.folder)}

  def progress(self):
    """Returns the progress."""
    lines = outcomes.rows(self.folder / 'train' / 'metrics.jsonl')
    return lines[-1]['step'] if lines else 0

  def result(self):
    """Returns everything that must be equal at the end."""
    return outcomes.result(self.folder)

  def kinds(self):
    """Returns the kinds of faults that are possible now."""
    by_kind = super().kinds()
    # A complete checkpoint must remain; the run keeps two.
    if len(outcomes.whole(self.folder)) > 1:
      by_kind['truncate'] = lambda: self._damaged('truncate')
      by_kind['corrupt'] = lambda: self._damaged('corrupt')
    return by_kind

  def _damaged(self, kind: str) -> bool:
    """Breaks the newest checkpoint; the run must resume from the other."""
    newest = self.folder / f'checkpoint_{outcomes.newest_whole(self.folder)}'
    faults.damage_checkpoint(newest, kind, self.rng)
    self.run((0,))
    log = self.log.read_text(errors='replace')
    if 'Resuming from' not in log:
      self.counts.add('diverged_resumes', f'no warning of {newest.name}')
    return True


class LanguageModel(Training):
  """A training run with another data pipeline: text, packed."""

  experiment = (
    '--gin_file=gin/experiments/wikipedia_sample_lm.gin',
    "--gin.vocabularies.Choice.kind='bytes'",
  )
