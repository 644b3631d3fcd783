"""Experiment trackers, chosen in gin: gin/runs/trackers.gin.

A run's own metrics stay in its folder; trackers get them too.
"""

from selective_t5x.trackers.json_lines import JsonLines
from selective_t5x.trackers.tensorboard import TensorBoard
from selective_t5x.trackers.tracked import (
  Logger,
  tracked_evaluator,
  tracked_trainer,
)
from selective_t5x.trackers.tracker import Run, Tracker
from selective_t5x.trackers.trackio_project import Trackio
from selective_t5x.trackers.weights_and_biases import WandB

__all__ = [
  'JsonLines',
  'Logger',
  'Run',
  'TensorBoard',
  'Tracker',
  'Trackio',
  'WandB',
  'tracked_evaluator',
  'tracked_trainer',
]
