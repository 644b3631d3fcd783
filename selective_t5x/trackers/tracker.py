"""What a tracker is: it opens a MetricWriter of clu for a run."""

import dataclasses
import importlib.util
import threading
from collections.abc import Mapping
from typing import Any, Protocol

from clu import metric_writers
from etils import epath

from selective_t5x.errors import UserError
from selective_t5x.runs.files import read_json, write_json

# {tracker: the id of the run there}, so that a resumed run goes on with it.
IDS_FILE = 'trackers.json'
_IDS = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Run:
  """A run that trackers follow.

  Attributes:
    folder: the run's folder: the model folder, or that of an evaluation.
    step: the step that training starts or resumes from; metrics of later steps
      come again. None: this is no training, so none do.
    parameters: see `parameters.of_run`.
  """

  folder: str
  step: int | None
  parameters: Mapping[str, Any]

  @property
  def name(self) -> str:
    """The name of the folder."""
    return epath.Path(self.folder).name

  def saved_id(self, key: str) -> str | None:
    """Returns the id that a tracker gave to this run, or None.

    Args:
      key: names the tracker and the project.
    """
    file = epath.Path(self.folder) / IDS_FILE
    with _IDS:
      return read_json(file).get(key) if file.exists() else None

  def save_id(self, key: str, value: str) -> None:
    """Saves the id that a tracker gave to this run."""
    file = epath.Path(self.folder) / IDS_FILE
    with _IDS:
      ids = read_json(file) if file.exists() else {}
      write_json(file, {**ids, key: value})


class Tracker(Protocol):
  """Where metrics go; a small object of settings that gin builds."""

  def open(self, run: Run) -> metric_writers.MetricWriter:
    """Starts to follow a run, or goes on with it.

    The writer's `write_hparams` is called next, with the run's parameters.

    Args:
      run: the run.

    Returns:
      a writer. It is called by one thread at a time. Names of metrics have the
      form 'train/loss', 'training_eval/<task>/loss' and
      'inference_eval/<task>/<metric>'.
    """


def check_installed(tracker: str, package: str) -> None:
  """Raises UserError if the package of a tracker is not installed."""
  if importlib.util.find_spec(package) is None:
    raise UserError(
      f'trackers.{tracker}: the package {package} is not installed: pip '
      f"install 'selective_t5x[trackers]' (docs/trackers.md)"
    )
