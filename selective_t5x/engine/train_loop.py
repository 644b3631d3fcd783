"""The training loop between steps: metrics, evaluations, checkpoints."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping

import clu.values
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from selective_t5x.errors import Interrupted, RunError
from t5x import (
  checkpoints,
  data_reading,
  datasets,
  event_loops,
  garbage,
  metric_managers,
  preemption,
  progress,
  train_schedule,
)
from t5x import eval as eval_lib
from t5x import trainer as trainer_lib

TRAIN_METRIC_KEY = 'train'


class NonFiniteLossError(RunError, FloatingPointError):
  """The loss or a parameter is NaN or infinite; nothing was saved since."""


class Loop:
  """The parts of the training loop that check metrics, evaluate and save."""

  def __init__(
    self,
    trainer,
    manager,
    eval_datasets,
    evaluator,
    train_state_axes,
    actions,
    model_dir,
    save_transformations=(),
  ):
    """Stores the parts of the run.

    Args:
      trainer: holds the train state.
      manager: saves checkpoints, or None.
      eval_datasets: {name: dataset} to evaluate with teacher forcing.
      evaluator: the InferenceEvaluator, or None.
      train_state_axes: the train state with PartitionSpec or None as leaves.
      actions: {ActionMode: actions}.
      model_dir: the model folder.
      save_transformations: change what is saved, see SaveCheckpointConfig.
    """
    self._save_transformations = save_transformations
    self._trainer = trainer
    self._manager = manager
    self._eval_datasets = eval_datasets
    self._evaluator = evaluator
    self._train_state_axes = train_state_axes
    self._actions = actions
    self._model_dir = model_dir
    # Tells from the seconds of a wait for a batch whether to end it.
    self.stopped: Callable[[float], bool] = data_reading.never
    self._window = None  # the metrics of the last window, a future
    self._previous_loss = None

  def run(
    self,
    schedule: train_schedule.Schedule,
    train_iter,
    batch: Mapping[str, jax.Array],
    evaluate_first: bool,
  ) -> tuple[int, bool]:
    """Trains, evaluates and saves until the last step, an action or SIGTERM.

    Args:
      schedule: the steps at which windows end, and what happens there.
      train_iter: the training data, at the first step.
      batch: any batch, with which the train step is compiled.
      evaluate_first: whether to evaluate before the first step.

    Returns:
      (the last step, whether SIGTERM ended the run: that step is saved).

    Raises:
      NonFiniteLossError: the loss or a parameter became NaN or infinite.
      Interrupted: SIGTERM came while an evaluation waited for data.
    """
    trainer, step, interrupted = self._trainer, schedule.first_step, False
    with (
      self._evaluation_may_end(),
      preemption.noticed() as notice,
      garbage.collected_every(schedule.collection) as collect,
      trainer,
      self._saving(),
      contextlib.closing(self._evaluator)
      if self._evaluator
      else contextlib.nullcontext(),
    ):
      trainer.interrupted, train_iter.stopped = notice, notice.ends_wait
      self.stopped = notice.ends_long_wait
      self.resume_window(step)
      if self._manager and step not in self._manager.all_steps():
        self.save()
      if evaluate_first and schedule.evaluation:
        self.evaluate()
      if step < schedule.total_steps:
        trainer.compile_train(batch)
      with progress.Progress(step, schedule.total_steps) as bar:
        while step < schedule.total_steps and not trainer.stop_training:
          end = schedule.end_of_window(step)
          step = self.train(train_iter, step, end)
          collect(step)
          interrupted = step < end
          if interrupted:
            break
          if schedule.evaluates(step):
            self.evaluate()
          if self._manager and schedule.saves(step):
            self.save()
          bar.update(step, self.last_loss())
      self.check_finite()
      if interrupted:
        self._save_interrupted()
    return step, interrupted

  def interruption(self, step: int) -> str:
    """Returns what SIGTERM did, and how to resume."""
    saved = checkpoints.all_steps(self._model_dir)
    last = f'checkpoint_{saved[-1]}' if saved else 'step 0'
    return (
      f'stopped by SIGTERM after step {step}; the same command resumes from '
      f'{last}'
    )

  @contextlib.contextmanager
  def _saving(self) -> Iterator[None]:
    """Waits for a running save at any end; removes a failed one's remains."""
    if not self._manager:
      yield
      return
    with event_loops.patient():
      try:
        yield
      finally:
        try:
          self._manager.close()
        finally:
          self._manager.remove_remains()

  @contextlib.contextmanager
  def _evaluation_may_end(self) -> Iterator[None]:
    """Ends the run without saving if an evaluation gets no data.

    Its metrics are missing, so the step before it must be repeated.
    """
    try:
      yield
    except data_reading.Stopped:
      step = int(self._trainer.train_state.step)
      raise Interrupted(self.interruption(step)) from None

  def train(self, train_iter, start: int, end: int) -> int:
    """Takes the steps of one window; checks the previous window meanwhile.

    Returns:
      the last step: `end`, or less if the run was interrupted.
    """
    try:
      window = self._trainer.train(train_iter, end - start, start_step=start)
    except trainer_lib.PreemptionError:
      self._save_interrupted()
      raise
    self.check_finite()
    if window is None:
      return int(self._trainer.train_state.step)
    self._window = (end, window)
    if trainer_lib.ActionMode.TRAIN in self._actions:
      self.check_finite()
      self._act(
        trainer_lib.ActionMode.TRAIN, {TRAIN_METRIC_KEY: window.result()}
      )
    return end

  def _save_interrupted(self) -> None:
    """Saves the state of a trainer that has to stop, if saving is on."""
    step = int(self._trainer.train_state.step)
    if self._manager and step not in self._manager.all_steps():
      self.save()

  def resume_window(self, step: int) -> None:
    """Resumes the window that was unfinished when `step` was saved."""
    path = checkpoints.checkpoint_path(self._model_dir, step)
    *arrays, steps, seconds = checkpoints.restore_window(path) or (0, 0)
    if arrays:
      self._trainer.unfinished = trainer_lib.Unfinished(
        arrays, int(steps), float(seconds)
      )

  def evaluate(self) -> None:
    """Evaluates with teacher forcing and with the tasks' own metrics."""
    start = time.time()
    if self._eval_datasets:
      self._evaluate_training()
    if self._evaluator is not None:
      self._evaluate_inference()
    self._trainer.train_metrics_manager.write_scalar(
      'timing/evaluate_seconds',
      time.time() - start,
      int(self._trainer.train_state.step),
    )

  def _evaluate_training(self) -> None:
    with datasets.reading('the evaluation data'):
      summaries = self._trainer.eval(
        {
          name: data_reading.InterruptibleIterator(dataset, self.stopped)
          for name, dataset in self._eval_datasets.items()
        }
      )
    for task, summary in summaries.items():
      logging.info(
        'evaluation of %s at step %d: %s',
        task,
        int(self._trainer.train_state.step),
        ', '.join(
          f'{name} {value:.4f}'
          for name, value in metric_managers.scalar_values(summary).items()
          if name in ('loss', 'accuracy')
        ),
      )
    self._act(trainer_lib.ActionMode.TRAIN_EVAL, summaries)

  def _evaluate_inference(self) -> None:
    state = self._trainer.train_state
    metrics = eval_lib.task_metrics(
      self._evaluator, state, self._train_state_axes
    )
    for task, values in metrics.items():
      logging.info(
        'evaluation of %s at step %d: %s',
        task,
        int(state.step),
        ', '.join(f'{name} {value:.4f}' for name, value in values.items()),
      )
    self._act(
      trainer_lib.ActionMode.INFER_EVAL,
      {
        task: {name: clu.values.Scalar(v) for name, v in values.items()}
        for task, values in metrics.items()
      },
    )

  def save(self) -> None:
    """Saves a checkpoint after all metrics up to its step are on disk.

    The loss of a step depends on the parameters before it, so the parameters
    themselves are checked too.
    """
    self.check_finite()
    if not trainer_lib.all_finite(self._trainer.train_state.params):
      self._refuse('A parameter is not finite', self._trainer.train_state.step)
    self._trainer.flush()
    window, of = self._trainer.unfinished, ()
    if window:
      of = [*window.arrays, np.array(window.steps), np.array(window.seconds)]
    self._manager.unfinished_window = of
    self._manager.save(self._trainer.train_state, self._save_transformations)

  def last_loss(self) -> float | None:
    """The loss of the last finished window."""
    if self._window is not None and self._window[1].done():
      self.check_finite()
    return self._previous_loss

  def check_finite(self) -> None:
    """Raises NonFiniteLossError if the last window's loss is not finite."""
    if self._window is None:
      return
    step, window = self._window
    self._window = None
    summary = window.result()
    limit = self._trainer.max_skipped_steps
    if limit is not None:
      skipped = int(summary[trainer_lib.SKIPPED_STEPS].value)
      if skipped:
        logging.warning(
          '%d steps before step %d had gradients that are not finite and '
          'changed nothing',
          skipped,
          step,
        )
      if skipped > limit:
        self._refuse(
          f'{skipped} steps had gradients that are not finite (Trainer.'
          f'max_skipped_steps = {limit})',
          step,
        )
    loss = metric_managers.scalar_values(summary).get('loss')
    if loss is None:  # a model of one's own may have no such metric
      return
    if not math.isfinite(loss):
      self._refuse(f'The loss became {loss}', step)
    self._previous_loss = loss

  def _refuse(self, what: str, step: int) -> None:
    """Raises NonFiniteLossError, naming the checkpoint to resume from."""
    if self._manager:
      self._manager.wait_until_finished()
    saved = checkpoints.all_steps(self._model_dir)
    last = f'checkpoint_{saved[-1]}' if saved else 'none'
    raise NonFiniteLossError(
      f'{what} at or before step {int(step)}; the last checkpoint is {last}. '
      'A lower LEARNING_RATE or more WARMUP_STEPS may help.'
    )

  def _act(self, mode, metrics_by_task) -> None:
    if mode in self._actions:
      self._trainer.stop_training |= run_actions(
        mode, self._actions, self._trainer.train_state, metrics_by_task
      )


def run_actions(mode, actions, train_state, metrics_by_task) -> bool:
  """Runs the actions of a mode in the first process.

  Args:
    mode: a key of `actions`.
    actions: {ActionMode: actions}.
    train_state: the present train state.
    metrics_by_task: {task: {metric: value}}.

  Returns:
    whether an action wants to stop training; the same in all processes.

  Raises:
    RuntimeError: there are no metrics.
  """
  stop = False
  if jax.process_index() == 0:
    if not metrics_by_task:
      raise RuntimeError(f'There are no metrics for the actions of {mode}')
    for action in actions.get(mode, ()):
      stop |= bool(action.run(train_state, metrics_by_task=metrics_by_task))
  return bool(multihost_utils.broadcast_one_to_all(jnp.array(stop)))
