"""A training run, and what befalls it."""

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
    """Returns how far each thing is saved that must not be lost."""
    return {self.folder.name: outcomes.newest_whole(self.folder)}

  def progress(self):
    """Returns how far it is."""
    found = outcomes.rows(self.folder / 'train' / 'metrics.jsonl')
    return found[-1]['step'] if found else 0

  def result(self):
    """Returns all that has to be equal in the end."""
    return outcomes.result(self.folder)

  def kinds(self):
    """Returns the kinds of faults that are possible now."""
    found = super().kinds()
    # A whole one has to be left; it keeps two.
    if len(outcomes.whole(self.folder)) > 1:
      found['truncate'] = lambda: self._damaged('truncate')
      found['corrupt'] = lambda: self._damaged('corrupt')
    return found

  def _damaged(self, kind: str) -> bool:
    """Breaks the newest checkpoint; the run has to go on from the other."""
    newest = self.folder / f'checkpoint_{outcomes.newest_whole(self.folder)}'
    faults.damage_checkpoint(newest, kind, self.rng)
    self.run((0,))
    told = self.log.read_text(errors='replace')
    if 'Going on from' not in told:
      self.counts.add('diverged_resumes', f'no warning of {newest.name}')
    return True


class LanguageModel(Training):
  """Another data pipeline: text, packed."""

  experiment = (
    '--gin_file=gin/experiments/wikipedia_sample_lm.gin',
    "--gin.vocabularies.Choice.kind='bytes'",
  )
