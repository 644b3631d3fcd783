"""Weights & Biases (the package wandb)."""

import dataclasses
import math
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import gin

from selective_t5x.errors import UserError, did_you_mean, is_remote
from selective_t5x.trackers.tracker import Run, check_installed
from selective_t5x.trackers.writers import ScalarWriter

_MODES = ('online', 'offline', 'disabled')


@gin.configurable(module='selective_t5x.trackers')
@dataclasses.dataclass(frozen=True)
class WandB:
  """Sends all metrics of a run to one run of Weights & Biases.

  A resumed run goes on with the same run there. The axis of its charts is the
  metric 'step'; steps that a resumed run repeats appear twice, with the same
  values.

  Attributes:
    project: the project's name.
    entity: the user or team; None: the default of the account.
    name: the run's name; None: the name of the run's folder.
    group: puts runs together, such as the seeds of a variant, or None.
    tags: the run's tags.
    mode: 'online', 'offline' (`wandb sync` sends it later) or 'disabled'; None:
      what the environment variable WANDB_MODE says, else 'online'.
    folder: for local files; None: the run's folder, or wandb's default if that
      is remote.
  """

  project: str = 'selective_t5x'
  entity: str | None = None
  name: str | None = None
  group: str | None = None
  tags: Sequence[str] = ()
  mode: str | None = None
  folder: str | None = None

  def __post_init__(self):
    """Refuses an unknown mode and a missing package."""
    if self.mode is not None and self.mode not in _MODES:
      raise UserError(
        f'trackers.WandB.mode = {self.mode!r}: expected one of '
        f'{", ".join(_MODES)}{did_you_mean(str(self.mode), _MODES)}'
      )
    check_installed('WandB', 'wandb')

  def open(self, run: Run) -> '_Writer':
    """Starts or resumes the run, see Tracker."""
    import wandb

    key = f'wandb {self.entity or ""}/{self.project}'
    run_id = run.saved_id(key)
    folder = self.folder or (None if is_remote(run.folder) else run.folder)
    if folder:
      os.makedirs(folder, exist_ok=True)
    service_run = wandb.init(
      project=self.project,
      entity=self.entity,
      name=self.name or run.name,
      group=self.group,
      tags=list(self.tags) or None,
      mode=self.mode,
      dir=folder,
      id=run_id or uuid.uuid4().hex[:12],
      resume='allow',
      reinit='create_new',  # Another run of this process may be open.
    )
    run.save_id(key, service_run.id)
    return _Writer(service_run)


class _Writer(ScalarWriter):
  """Logs to a run of Weights & Biases."""

  def __init__(self, service_run: Any):
    """Makes 'step' the axis of all charts.

    With wandb's own step, values of earlier steps would be dropped.
    """
    super().__init__()
    self._run = service_run
    self._run.define_metric('step', hidden=True)
    self._run.define_metric('*', step_metric='step')

  def _write(self, step, values):
    self._run.log({'step': step, **values})

  def write_images(self, step, images):
    """Logs images of shape [N, H, W, C] or [H, W, C]."""
    import wandb

    self._run.log(
      {
        'step': step,
        **{
          name: [wandb.Image(x) for x in (v if v.ndim == 4 else v[None])]
          for name, v in images.items()
        },
      }
    )

  def write_histograms(self, step, arrays, num_buckets=None):
    """Logs histograms."""
    import wandb

    buckets = num_buckets or {}
    self._run.log(
      {
        'step': step,
        **{
          name: wandb.Histogram(
            array, **({'num_bins': buckets[name]} if name in buckets else {})
          )
          for name, array in arrays.items()
        },
      }
    )

  def write_hparams(self, hparams: Mapping):
    """Writes the run's config; a resumed run may have other values."""
    config = {
      key: None if isinstance(v, float) and not math.isfinite(v) else v
      for key, v in hparams.items()
    }
    self._run.config.update(config, allow_val_change=True)

  def close(self):
    """Ends the run there, as failed if an exception ends it here."""
    self._run.finish(exit_code=1 if sys.exc_info()[0] else 0)
