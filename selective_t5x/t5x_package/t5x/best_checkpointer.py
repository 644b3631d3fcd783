"""A Checkpointer that keeps the checkpoints with the best metric."""

from collections.abc import Mapping
from typing import Any

import gin

from t5x.checkpointers import Checkpointer


@gin.configurable
class SaveBestCheckpointer(Checkpointer):
  """Keeps the checkpoints with the best values of a metric, and the latest.

  The metric of a step is read when it is saved, from TensorBoard's event files.
  """

  __module__ = 't5x.checkpoints'  # T5X's, for gin and pickles

  def __init__(
    self,
    *args,
    metric_name_to_monitor: str = 'train/accuracy',
    metric_mode: str = 'max',
    keep_checkpoints_without_metrics: bool = True,
    force_keep_period: int | None = None,
    **kwargs,
  ):
    """Stores the settings.

    Args:
      *args: see `Checkpointer`.
      metric_name_to_monitor: 'FOLDER/TAG', for instance 'train/accuracy' or
        'inference_eval/TASK/eval/bleu'.
      metric_mode: 'max' or 'min', which is best.
      keep_checkpoints_without_metrics: whether a checkpoint whose metric is not
        there stays.
      force_keep_period: checkpoints of multiples of it stay; None: of none.
      **kwargs: see `Checkpointer`; `keep` is the number of best checkpoints.

    Raises:
      ValueError: another mode.
    """
    if metric_mode not in ('max', 'min'):
      raise ValueError(
        f'Unsupported `metric_mode`: {metric_mode}; expected max or min'
      )
    super().__init__(*args, **kwargs)
    self._options = {
      'metric_name_to_monitor': metric_name_to_monitor,
      'metric_mode': metric_mode,
      'keep_checkpoints_without_metrics': keep_checkpoints_without_metrics,
      'force_keep_period': force_keep_period,
    }

  @property
  def manager_options(self) -> Mapping[str, Any]:
    """Arguments of OrbaxCheckpointManagerInterface that do the same."""
    return self._options
