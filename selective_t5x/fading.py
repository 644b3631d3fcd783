"""Training that fades selection in by a factor on F that rises from 0 to 1.

A baseline's checkpoint fits a selective model, which has the same parameters,
but it was not trained with masking. With F = 0 it first resumes as the
baseline, and then has FADE_STEPS steps to learn what to mask.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics

from selective_t5x.attention import capabilities
from selective_t5x.errors import UserError, is_integer
from selective_t5x.nn import model_copies
from t5x import trainer

METRIC = 'selection/masking_scale'


def masking_scale(
  step: jax.Array | int, fade_start: int, fade_steps: int
) -> jax.Array:
  """Returns clip((step - fade_start) / fade_steps, 0, 1), f32[]."""
  faded = (jnp.asarray(step) - fade_start) / fade_steps
  return jnp.clip(faded, 0, 1).astype(jnp.float32)


def at_masking_scale(model: Any, scale: jax.Array | float) -> Any:
  """Returns a copy of a T5X model whose F is multiplied by `scale`.

  Args:
    model: a model whose module's config has an attention_fn that selects.
    scale: f32[], zero or more, may be traced; 0 is the baseline.

  Raises:
    UserError: if the attention function has no masking_scale.
  """
  attention_fn = model.module.config.attention_fn
  _check_selects(attention_fn)
  return model_copies.with_config(
    model, attention_fn=functools.partial(attention_fn, masking_scale=scale)
  )


class FadingTrainer(trainer.Trainer):
  """T5X's trainer with a masking scale for a step and its evaluation.

  The scale depends only on the step, so a killed run resumes exactly. Both
  report it as the metric `selection/masking_scale`. Predictions, in training or
  after it, use the full selection.

  Gin: gin/attention/fade_in.gin.
  """

  def __init__(self, *args, fade_start: int, fade_steps: int, **kwargs):
    """Takes T5X's arguments, and the schedule.

    Args:
      *args: arguments of trainer.Trainer.
      fade_start: the last step with scale 0.
      fade_steps: steps from there to the first with scale 1, one or more.
      **kwargs: arguments of trainer.Trainer.

    Raises:
      UserError: if a value is out of range, or the model does not select.
    """
    for name, value, least in (
      ('fade_start', fade_start, 0),
      ('fade_steps', fade_steps, 1),
    ):
      if not is_integer(value) or value < least:
        raise UserError(
          f'fading.FadingTrainer.{name} = {value!r}: expected an integer of '
          f'{least} or more'
        )
    super().__init__(*args, **kwargs)
    _check_selects(self._model.module.config.attention_fn)
    self._masking_scale = functools.partial(
      masking_scale, fade_start=fade_start, fade_steps=fade_steps
    )

  @functools.cached_property
  def _partitioned_train_step(self):
    def train_step(train_state, batch):
      step = train_state.step
      scale = self._masking_scale(step)
      train_state, metrics = trainer.train_with_lr(
        train_state,
        batch,
        learning_rate=self._learning_rate_fn(step),
        dropout_rng=self._get_step_rng(step),
        model=at_masking_scale(self._model, scale),
        num_microbatches=self._num_microbatches,
        weight_metrics_computer=self._weight_metrics_computer,
        data_partition_spec=self._partitioner.data_partition_spec,
        # The embedded engine's options; T5X's trainer has none.
        **getattr(self, '_step_options', {}),
      )
      return train_state, {**metrics, **_metric(scale)}

    return self._partitioner.partition(
      train_step,
      in_axis_resources=(
        self._train_state_axes,
        self._partitioner.data_partition_spec,
      ),
      out_axis_resources=(self._train_state_axes, None),
      donate_argnums=(0,),
    )

  @functools.cached_property
  def _partitioned_eval_step(self):
    def eval_step(train_state, batch):
      scale = self._masking_scale(train_state.step)
      model = at_masking_scale(self._model, scale)
      _, metrics = model.eval_fn(train_state.params, batch)
      return {**metrics, **_metric(scale)}

    return self._partitioner.partition(
      eval_step,
      in_axis_resources=(
        self._train_state_axes,
        self._partitioner.data_partition_spec,
      ),
      out_axis_resources=None,
    )


def _metric(scale: jax.Array) -> dict[str, clu_metrics.Metric]:
  return {METRIC: clu_metrics.LastValue.from_model_output(scale[None])}


def _check_selects(attention_fn: Callable[..., Any]):
  """Refuses an attention function without selection to fade in."""
  if not capabilities.of(attention_fn).masking_scale:
    raise UserError(
      f'fading.FadingTrainer fades selection in, but the attention function '
      f'({capabilities.name(attention_fn)}) does not select: use ATTENTION = '
      '@attention.selective_attention (gin/attention/selective.gin)'
    )
