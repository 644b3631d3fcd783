"""The steps at which a run ends windows of metrics, evaluates and saves."""

import dataclasses

from t5x import checkpoint_configs


@dataclasses.dataclass(frozen=True)
class Schedule:
  """The periods of a run, in steps; 0 is never.

  Windows end at multiples of the periods, not relative to the first step: a
  resumed run has the windows of an uninterrupted one.

  Attributes:
    first_step: the step that the run starts from.
    total_steps: the step to stop after.
    stats: the period of train metrics.
    evaluation: the period of evaluations.
    saving: the period of checkpoints.
    collection: the period of garbage collections.
    saved_steps: further steps with a checkpoint, in order.
  """

  first_step: int
  total_steps: int
  stats: int
  evaluation: int
  saving: int
  collection: int
  saved_steps: tuple[int, ...]

  @property
  def ever_saves(self) -> bool:
    """Whether the run has checkpoints."""
    return bool(self.saving or self.saved_steps)

  def end_of_window(self, step: int) -> int:
    """Returns the last step of the window that starts after a step."""
    periods = (self.stats, self.evaluation, self.saving, self.collection)
    ends = [(step // period + 1) * period for period in periods if period]
    later = [saved for saved in self.saved_steps if saved > step]
    return min(self.total_steps, *ends, *later)

  def evaluates(self, step: int) -> bool:
    """Whether the run is evaluated at the end of a window."""
    return self._is_at(step, self.evaluation)

  def saves(self, step: int) -> bool:
    """Whether a checkpoint is saved at the end of a window."""
    return self._is_at(step, self.saving) or step in self.saved_steps

  def _is_at(self, step: int, period: int) -> bool:
    return bool(period) and (step == self.total_steps or step % period == 0)


def of_run(
  first_step: int,
  total_steps: int,
  save_cfg: checkpoint_configs.SaveCheckpointConfig | None,
  *,
  stats_period: int | None,
  eval_period: int,
  gc_period: int,
) -> Schedule:
  """Returns the schedule of a run.

  Args:
    first_step: the step that the run starts from.
    total_steps: the step to stop after.
    save_cfg: the periods and steps of saving, or None.
    stats_period: None: the shorter of the evaluation's and saving's.
    eval_period: 0: never.
    gc_period: 0: never.
  """
  saving = (save_cfg.period if save_cfg else 0) or 0
  periods = [period for period in (eval_period, saving) if period]
  return Schedule(
    first_step=first_step,
    total_steps=total_steps,
    stats=stats_period or min(periods, default=total_steps),
    evaluation=eval_period,
    saving=saving,
    collection=gc_period,
    saved_steps=tuple(sorted((save_cfg and save_cfg.checkpoint_steps) or ())),
  )
