"""Trainers, actions and weight metrics as T5X's users write them."""

import functools

import clu.metrics
import jax
import jax.numpy as jnp
import optax

from t5x import metrics as metrics_lib
from t5x import trainer as trainer_lib
from tests.engine import tiny

LARGEST_NORM = 0.5


class ClippingTrainer(trainer_lib.Trainer):
  """A train step of one's own, from T5X's parts: it clips the gradients."""

  @functools.cached_property
  def _partitioned_train_step(self):
    def train_step(train_state, batch):
      grads, metrics, _ = trainer_lib.accumulate_grads_microbatched(
        self._model,
        train_state,
        batch,
        self._get_step_rng(train_state.step),
        self._num_microbatches,
        self._partitioner.data_partition_spec,
      )
      norm = optax.global_norm(grads)
      scale = jnp.minimum(1.0, LARGEST_NORM / norm)
      metrics['grad_norm'] = metrics_lib.AveragePerStep.from_model_output(norm)
      return trainer_lib.apply_grads(
        train_state,
        jax.tree.map(lambda x: x * scale, grads),
        metrics,
        self._learning_rate_fn(train_state.step),
        self._weight_metrics_computer,
      )

    return self._partitioner.partition(
      train_step,
      in_axis_resources=(
        self._train_state_axes,
        self._partitioner.data_partition_spec,
      ),
      out_axis_resources=(self._train_state_axes, None),
      donate_argnums=(0,),
    )


class LoopTrainer(trainer_lib.BaseTrainer):
  """A loop of one's own, on BaseTrainer; it calls T5X's train_with_lr."""

  def __init__(self, *args, learning_rate, **kwargs):
    super().__init__(*args, **kwargs)
    self._learning_rate = learning_rate

  def train(self, batch_iter, num_steps, start_step=None):
    metrics = None
    manager = self.train_metrics_manager
    state = self.train_state
    if start_step is None:
      start_step = int(state.step)
    manager.start_duration_timer(block_on=state)
    for _ in range(num_steps):
      state, update = self._partitioned_train_step(state, next(batch_iter))
      metrics = (
        trainer_lib.merge_metrics(metrics, update) if metrics else update
      )
    metrics['own_loop'] = clu.metrics.LastValue.from_model_output(
      jnp.asarray([7.0])
    )
    self.train_state = state
    return manager.write_metrics_summary(
      metrics, start_step + num_steps, num_steps
    )

  @functools.cached_property
  def _partitioned_train_step(self):
    def train_step(train_state, batch):
      return trainer_lib.train_with_lr(
        train_state,
        batch,
        self._learning_rate,
        self._get_step_rng(train_state.step),
        self._model,
        0,
        None,
        self._partitioner.data_partition_spec,
      )

    return self._partitioner.partition(
      train_step,
      in_axis_resources=(
        self._train_state_axes,
        self._partitioner.data_partition_spec,
      ),
      out_axis_resources=(self._train_state_axes, None),
    )

  @functools.cached_property
  def _partitioned_eval_step(self):
    return self._partitioner.partition(
      lambda state, batch: trainer_lib.eval_step(self._model, state, batch),
      in_axis_resources=(
        self._train_state_axes,
        self._partitioner.data_partition_spec,
      ),
      out_axis_resources=None,
    )


class PreemptedTrainer(trainer_lib.Trainer):
  """A trainer whose machine is taken away after some steps."""

  def __init__(self, *args, last_step, **kwargs):
    super().__init__(*args, **kwargs)
    self._last_step = last_step

  def train(self, batch_iter, num_steps, start_step=None):
    if int(self.train_state.step) >= self._last_step:
      raise trainer_lib.PreemptionError('the machine is taken away')
    return super().train(batch_iter, num_steps, start_step)


class NormsOnly(trainer_lib.WeightMetricsComputer):
  """Weight metrics of one's own, from a helper of T5X's class."""

  def compute_metrics(self, gradients, old_train_state, new_train_state):
    return self._make_rms_metrics('rms_of', new_train_state.params)


class StopAt(trainer_lib.BaseAction):
  """An action of one's own: it stops the run at a step."""

  def __init__(self, step):
    self._step = step
    self.losses = []

  def run(self, train_state, metrics_by_task):
    self.losses.append(float(metrics_by_task['train']['loss'].value))
    return int(train_state.step) >= self._step


def constructor(cls, **kwargs):
  """Returns a trainer's class with a constant learning rate."""
  return functools.partial(
    cls, **{'learning_rate_fn': optax.constant_schedule(0.01), **kwargs}
  )


def own_step():
  """A train step that clips gradients, in two microbatches."""
  return {
    'model': tiny.model(loss_normalizing_factor=None),
    'trainer_cls': constructor(ClippingTrainer, num_microbatches=2),
  }


def own_loop():
  """A trainer that shares only BaseTrainer with T5X's."""
  return {'trainer_cls': functools.partial(LoopTrainer, learning_rate=0.01)}


def preempted():
  """A trainer that has to stop after 3 of 4 steps."""
  return {
    'trainer_cls': constructor(
      PreemptedTrainer, num_microbatches=None, last_step=3
    )
  }


def own_weight_metrics():
  """Other metrics of the weights."""
  return {
    'trainer_cls': constructor(
      trainer_lib.Trainer,
      num_microbatches=None,
      weight_metrics_computer=NormsOnly(),
    )
  }


def own_action():
  """An action of one's own stops after 2 of 4 steps."""
  return {'actions': {'TRAIN': [StopAt(2)]}}


def early_stopping():
  """T5X's early stopping, on a loss that cannot improve enough."""
  action = trainer_lib.EarlyStoppingAction(
    ('train', 'loss'), mode='min', patience=2, atol=100.0
  )
  return {'actions': {'TRAIN': [action]}}
