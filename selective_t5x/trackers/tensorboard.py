"""TensorBoard, in a folder of one's own choice."""

import dataclasses
import json
import os
from collections.abc import Mapping

import gin
from clu import metric_writers

from selective_t5x.trackers.json_lines import FOLDER
from selective_t5x.trackers.tracker import Run


@gin.configurable(module='selective_t5x.trackers')
@dataclasses.dataclass(frozen=True)
class TensorBoard:
  """Writes all metrics of a run, and its parameters, as one TensorBoard run.

  Attributes:
    folder: where; None: <the run's folder>/trackers/tensorboard. With one
      folder for many runs, each has the subfolder of its name.
  """

  folder: str | None = None

  def open(self, run: Run) -> metric_writers.MetricWriter:
    """Opens the event file, see Tracker."""
    folder = os.path.join(run.folder, FOLDER, 'tensorboard')
    if self.folder:
      folder = os.path.join(self.folder, run.name)
    return _Writer(folder)


class _Writer(metric_writers.SummaryWriter):
  """clu's writer, with values for TensorBoard's table of parameters."""

  def write_hparams(self, hparams: Mapping):
    """Writes the parameters: settings as a table, texts as Markdown."""
    settings = hparams['settings']
    super().write_hparams(
      {
        name: value if isinstance(value, bool | int | float) else str(value)
        for name, value in settings.items()
      }
    )
    rest = {k: v for k, v in hparams.items() if k != 'settings'}
    super().write_texts(
      0, {'parameters': f'```\n{json.dumps(rest, indent=2)}\n```'}
    )
