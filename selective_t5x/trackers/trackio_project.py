"""trackio: a tracker that keeps its data on this machine."""

import dataclasses
import uuid
from collections.abc import Mapping
from typing import Any

import gin

from selective_t5x.trackers.tracker import Run, check_installed
from selective_t5x.trackers.writers import ScalarWriter


@gin.configurable(module='selective_t5x.trackers')
@dataclasses.dataclass(frozen=True)
class Trackio:
  """Logs all metrics of a run to one run of trackio.

  trackio keeps runs in the folder TRACKIO_DIR; `trackio show` shows them. A
  resumed run goes on with the same run; steps that it repeats appear twice,
  with the same values.

  Attributes:
    project: the project's name.
    name: the run's name, which must be unique in the project; None: the name of
      the run's folder and a random suffix.
    group: puts runs together, such as the seeds of a variant, or None.
    space_id: a Hugging Face Space to log to, or None.
  """

  project: str = 'selective_t5x'
  name: str | None = None
  group: str | None = None
  space_id: str | None = None

  def __post_init__(self):
    """Refuses a missing package."""
    check_installed('Trackio', 'trackio')

  def open(self, run: Run) -> '_Writer':
    """Prepares the run, see Tracker; it starts with its parameters."""
    key = f'trackio {self.space_id or ""}/{self.project}'
    name = run.saved_id(key)
    if name is None:
      name = self.name or f'{run.name}-{uuid.uuid4().hex[:6]}'
      run.save_id(key, name)
    return _Writer(self, name)


class _Writer(ScalarWriter):
  """Logs to a run of trackio."""

  def __init__(self, settings: Trackio, name: str):
    super().__init__()
    self._settings, self._name = settings, name
    self._run: Any = None

  def write_hparams(self, hparams: Mapping):
    """Starts or resumes the run with its parameters."""
    import trackio

    self._run = trackio.init(
      project=self._settings.project,
      name=self._name,
      group=self._settings.group,
      space_id=self._settings.space_id,
      config=dict(hparams),
      resume='allow',
      embed=False,
      auto_log_gpu=False,
      auto_log_cpu=False,
    )

  def _write(self, step, values):
    self._run.log(values, step=step)

  def close(self):
    """Waits until all is logged, and ends the run."""
    if self._run is not None:
      self._run.finish()
