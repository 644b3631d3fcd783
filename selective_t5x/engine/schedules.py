"""Learning rate schedules from T5X's factors."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

LearningRateCallable = Callable[[jax.Array], jax.Array]


def create_learning_rate_scheduler(
  factors: str = 'constant * linear_warmup * rsqrt_decay',
  base_learning_rate: float = 0.5,
  warmup_steps: int = 1000,
  decay_factor: float = 0.5,
  steps_per_decay: int = 20000,
  steps_per_cycle: int = 100000,
  step_offset: int = 0,
  min_learning_rate: float = 1e-8,
) -> LearningRateCallable:
  """Returns a schedule: the product of factors named in a string.

  With s the step counted from step_offset:
    constant: base_learning_rate.
    linear_warmup: min(1, s / warmup_steps).
    linear_decay: base_learning_rate * min(s / warmup_steps, 1 + decay_factor *
      (warmup_steps - s)); replaces the two above.
    rsqrt_decay: 1 / sqrt(max(s, warmup_steps)).
    rsqrt_normalized_decay: the same times sqrt(warmup_steps).
    decay_every: decay_factor ** (s // steps_per_decay).
    cosine_decay: half a cosine from 1 to 0 over steps_per_cycle steps from
      warmup_steps on, then restarted at 1.

  Args:
    factors: names joined by '*'.
    base_learning_rate: the constant.
    warmup_steps: steps of warm-up; 0: no warm-up (T5X divides by zero).
    decay_factor: see linear_decay and decay_every.
    steps_per_decay: see decay_every.
    steps_per_cycle: see cosine_decay.
    step_offset: the step at which the schedule begins.
    min_learning_rate: the schedule never goes below this.

  Returns:
    a function from step i32[] to learning rate f32[].

  Raises:
    ValueError: a factor has another name.
  """
  warmup = max(warmup_steps, 1)

  def warmed_up(s):
    return s / warmup if warmup_steps else jnp.inf

  def cosine(s):
    progress = jnp.maximum(0.0, (s - warmup_steps) / float(steps_per_cycle))
    return jnp.maximum(0.0, 0.5 * (1.0 + jnp.cos(jnp.pi * (progress % 1.0))))

  factor_fns = {
    'constant': lambda s: base_learning_rate,
    'linear_warmup': lambda s: jnp.minimum(1.0, warmed_up(s)),
    'linear_decay': lambda s: (
      base_learning_rate
      * jnp.minimum(warmed_up(s), 1.0 + decay_factor * (warmup_steps - s))
    ),
    'rsqrt_decay': lambda s: 1 / jnp.sqrt(jnp.maximum(s, warmup)),
    'rsqrt_normalized_decay': lambda s: (
      jnp.sqrt(warmup) / jnp.sqrt(jnp.maximum(s, warmup))
    ),
    'decay_every': lambda s: decay_factor ** (s // steps_per_decay),
    'cosine_decay': cosine,
  }
  names = [name.strip() for name in factors.split('*')]
  for name in names:
    if name not in factor_fns:
      raise ValueError(
        f'Unknown factor {name!r} in create_learning_rate_scheduler.factors; '
        f'expected {", ".join(factor_fns)}'
      )

  def schedule(step: jax.Array) -> jax.Array:
    s = jnp.maximum(0, step - step_offset)
    rate = 1.0
    for name in names:
      rate *= factor_fns[name](s)
    return jnp.asarray(jnp.maximum(rate, min_learning_rate), jnp.float32)

  return schedule
