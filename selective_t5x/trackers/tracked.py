"""Connects trackers to T5X: to its trainers and to seqio's evaluations."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin
import numpy as np
import seqio
from clu import metric_writers

from selective_t5x.errors import absolute_path
from selective_t5x.trackers import hub
from selective_t5x.trackers.tracker import Tracker

# Where InferenceEvaluator of both engines writes.
_EVALUATIONS = 'inference_eval'


@gin.configurable(module='selective_t5x.trackers')
def tracked_trainer(
  trainer_cls: Callable[..., Any] = gin.REQUIRED,
  trackers: Sequence[Tracker] = (),
) -> Callable[..., Any]:
  """Returns a constructor of trainers whose metrics trackers get, too.

      train.trainer_cls = @trackers.tracked_trainer()
      trackers.tracked_trainer.trainer_cls = @trainer.Trainer
      trackers.tracked_trainer.trackers = [@trackers.JsonLines()]

  It works with the trainers of both engines. What they write themselves stays
  as it is.

  Args:
    trainer_cls: makes the trainer.
    trackers: any number.
  """
  return _constructor(trainer_cls, trackers, is_training=True)


@gin.configurable(module='selective_t5x.trackers')
def tracked_evaluator(
  trainer_cls: Callable[..., Any] = gin.REQUIRED,
  trackers: Sequence[Tracker] = (),
) -> Callable[..., Any]:
  """Is `tracked_trainer` for evaluate.training_evaluator_cls.

  Evaluations of several checkpoints come in any order, so no metric is dropped
  as one of a repeated step.
  """
  return _constructor(trainer_cls, trackers, is_training=False)


def _constructor(trainer_cls, trackers, *, is_training):
  def construct(*, summary_dir, train_state, **arguments):
    trainer = trainer_cls(
      summary_dir=summary_dir, train_state=train_state, **arguments
    )
    if summary_dir:
      # The state is not kept: its buffers are donated to the first step.
      step = int(train_state.step) if is_training else None
      _connect(trainer, absolute_path(str(summary_dir)), trackers, step)
    return trainer

  return construct


def _connect(trainer, folder, trackers, step) -> None:
  """Adds streams of the run's trackers to the writers of a trainer."""
  of_run = hub.of(folder, trackers)
  if of_run is None:
    return
  managers = {'train': trainer.train_metrics_manager} | {
    f'training_eval/{name}': manager
    for name, manager in trainer.eval_metrics_managers.items()
  }
  for name, manager in managers.items():
    # The attribute is private in both engines, and the same.
    manager._writer = metric_writers.MultiWriter(
      [manager._writer, of_run.stream(name, step)]
    )


@gin.configurable(module='selective_t5x.trackers')
class Logger(seqio.Logger):
  """Sends the metrics of seqio's evaluations to the trackers of the run.

  seqio.Evaluator.logger_cls = [..., @trackers.Logger]
  """

  def __init__(self, output_dir: str, trackers: Sequence[Tracker] = ()):
    """Stores the arguments.

    Args:
      output_dir: the run's folder, or its subfolder inference_eval.
      trackers: see `tracked_trainer`; give the same.
    """
    super().__init__(output_dir)
    folder = absolute_path(str(output_dir))
    if os.path.basename(folder) == _EVALUATIONS:
      folder = os.path.dirname(folder)
    self._folder, self._trackers = folder, trackers
    self._streams: dict[Any, metric_writers.MetricWriter] = {}

  def __call__(
    self,
    task_name: str,
    step: int | None,
    metrics: Mapping[str, Any],
    dataset: Any,
    inferences: Any,
    targets: Any,
  ) -> None:
    """Sends the metrics that are one number or a text, see seqio.Logger."""
    of_run = hub.of(self._folder, self._trackers)
    if of_run is None:
      return
    if of_run not in self._streams:
      # seqio's loggers are not closed.
      self._streams = {of_run: of_run.stream(_EVALUATIONS, None, closed=False)}
    scalars, texts = {}, {}
    for name, value in metrics.items():
      if isinstance(value, seqio.metrics.Text):
        texts[f'{task_name}/{name}'] = str(value.textdata)
        continue
      number = np.asarray(getattr(value, 'value', value))
      if number.dtype.kind in 'fiub' and number.size == 1:
        scalars[f'{task_name}/{name}'] = number.item()
    stream = self._streams[of_run]
    stream.write_scalars(step or 0, scalars)
    if texts:
      stream.write_texts(step or 0, texts)
    stream.flush()
