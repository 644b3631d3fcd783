"""A search for budgets, and its faults."""

import json
import pathlib

from tools.torture import faults, outcomes


class Search(faults.Command):
  """A search on the checkpoint of a finished training run."""

  module = 'selective_t5x.pruning.search'
  trained: pathlib.Path

  def arguments(self):
    """Returns its flags."""
    return [
      f'--checkpoint={self.trained}',
      '--gin_file=gin/pruning/selective.gin',
      f'--output_dir={self.folder}',
      '--tolerance=0.5',
      '--tuning_batches=2',
      '--report_batches=1',
    ]

  def saved(self):
    """Returns {what must not be lost: how far it is saved}."""
    return {'cuts': self.progress()}

  def progress(self):
    """Returns the progress."""
    file = self.folder / 'search.json'
    return len(json.loads(file.read_text())['path']) if file.exists() else 0

  def result(self):
    """Returns everything that must be equal at the end."""
    names = ('search.json', 'budgets.gin')
    files = [self.folder / name for name in names]
    return {f.name: f.exists() and f.read_text() for f in files}

  def kinds(self):
    """Returns the kinds of faults that are possible now."""
    by_kind = super().kinds()
    by_kind['corrupt'] = self._corrupt_checkpoint
    if self.progress():
      by_kind['truncate'] = self._truncate_state
    return by_kind

  def _corrupt_checkpoint(self) -> bool:
    """Breaks the checkpoint for one start, which is refused in one line."""
    newest = self.trained / f'checkpoint_{outcomes.newest_whole(self.trained)}'
    files = [file for file in newest.rglob('*') if file.is_file()]
    whole = {file: file.read_bytes() for file in files}
    faults.damage_checkpoint(newest, 'corrupt', self.rng)
    try:
      return self.run((2,)) == 2
    finally:
      for file, content in whole.items():
        file.write_bytes(content)

  def _truncate_state(self) -> bool:
    """Truncates search.json; starts are refused until it is moved away."""
    file = self.folder / 'search.json'
    faults.damage(file, 'truncate', self.rng)
    code = self.end(self.start(), (2,), {})
    file.unlink()
    return code == 2
