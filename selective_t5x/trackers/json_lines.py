"""JSON lines: all metrics of a run in one file."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping

import gin
from etils import epath

from selective_t5x.runs.files import read_json_lines, write_json
from selective_t5x.trackers.tracker import Run
from selective_t5x.trackers.writers import ScalarWriter

FOLDER = 'trackers'
METRICS_FILE = 'metrics.jsonl'
PARAMETERS_FILE = 'parameters.json'


@gin.configurable(module='selective_t5x.trackers')
@dataclasses.dataclass(frozen=True)
class JsonLines:
  """Writes metrics.jsonl and parameters.json.

  A line is {"step": 100, "train/loss": 2.5, …}; a step may have several lines,
  since training and evaluations write their own. A resumed run drops the lines
  of the steps that it repeats.

  Attributes:
    folder: where; None: <the run's folder>/trackers. Runs need folders of
      their own.
  """

  folder: str | None = None

  def open(self, run: Run) -> 'JsonLinesWriter':
    """Opens the file, see Tracker."""
    folder = self.folder or os.path.join(run.folder, FOLDER)
    return JsonLinesWriter(folder, run.step)


class JsonLinesWriter(ScalarWriter):
  """Appends a line with one write call, so that a kill breaks only the last."""

  def __init__(self, folder: str, step: int | None):
    """Drops the lines of later steps, and a broken one.

    Args:
      folder: of the files; created if missing.
      step: the last step to keep; None: every step.
    """
    super().__init__()
    self._folder = epath.Path(folder)
    self._folder.mkdir(parents=True, exist_ok=True)
    self._file = self._folder / METRICS_FILE
    if self._file.exists():
      rows = read_json_lines(self._file)
      kept_lines = [
        json.dumps(row) + '\n'
        for row in rows
        if step is None or row['step'] <= step
      ]
      temporary = self._file.with_suffix('.tmp')
      temporary.write_text(''.join(kept_lines))
      temporary.replace(self._file)

  def _write(self, step, values):
    # JSON has no NaN.
    strict = {
      k: None if isinstance(v, float) and not math.isfinite(v) else v
      for k, v in sorted(values.items())
    }
    with self._file.open('a') as file:
      file.write(json.dumps({'step': step, **strict}) + '\n')

  def write_hparams(self, hparams: Mapping):
    """Writes parameters.json."""
    write_json(self._folder / PARAMETERS_FILE, dict(hparams))
