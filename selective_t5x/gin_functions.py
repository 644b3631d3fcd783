"""Functions for gin files, since gin has no arithmetic."""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from selective_t5x.errors import UserError, is_number


def difference(minuend: float, subtrahend: float) -> float:
  """Returns minuend - subtrahend.

  Example:
    steps_per_cycle = @gin_functions.difference()
    gin_functions.difference:
      minuend = %TRAIN_STEPS
      subtrahend = %WARMUP_STEPS
  """
  return minuend - subtrahend


def twice(number: int) -> int:
  """Returns 2 * number, see gin/attention/twice_the_heads.gin."""
  return 2 * number


def half(number: int) -> int:
  """Returns number / 2, see gin/attention/differential.gin.

  Raises:
    UserError: if the number is odd.
  """
  if not isinstance(number, int) or number % 2:
    raise UserError(
      f'NUM_HEADS = {number!r}: differential attention has half as many heads, '
      'each of twice the size: expected an even number'
    )
  return number // 2


def number_or(number: int | None, default: int) -> int:
  """Returns number, or default where it is None.

  See gin/attention/selective_per_group.gin.
  """
  return default if number is None else number


def with_learning_rate_factors(
  optimizer: optax.GradientTransformation, factors: Mapping[str, float]
) -> optax.GradientTransformation:
  """Multiplies an optimiser's updates of some parameters.

  See gin/attention/ssa_finetune.gin. Matching parameters have no weight decay,
  since their factor would multiply it. The factors do not change the
  optimiser's state.

  Args:
    optimizer: an optax optimiser.
    factors: {regular expression: factor}; the expression must match the whole
      path of a parameter, such as
      decoder/layers_0/self_attention/extension/query_position.

  Raises:
    UserError: if a factor is not a positive number or, when the state is
      initialised, if an expression matches no parameter.
  """
  for pattern, factor in factors.items():
    if not is_number(factor) or not factor > 0:
      raise UserError(
        f'LEARNING_RATE_FACTORS[{pattern!r}] = {factor!r}: expected a number '
        'above 0'
      )
  if not factors:
    return optimizer

  def factor_of(path) -> float | None:
    for pattern, factor in factors.items():
      if re.fullmatch(pattern, _path_name(path)):
        return factor
    return None

  def init(params):
    paths = [
      _path_name(path)
      for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    for pattern in factors:
      if not any(re.fullmatch(pattern, path) for path in paths):
        raise UserError(
          f'LEARNING_RATE_FACTORS: no parameter matches {pattern!r}'
        )
    return optimizer.init(params)

  def update(updates, state, params=None):
    def undecayed(path, x):
      return x if factor_of(path) is None else jnp.zeros_like(x)

    def scaled(path, x):
      factor = factor_of(path)
      return x if factor is None else factor * x

    map_paths = jax.tree_util.tree_map_with_path
    if params is not None:
      params = map_paths(undecayed, params)
    updates, state = optimizer.update(updates, state, params)
    return map_paths(scaled, updates), state

  return optax.GradientTransformation(init, update)


def _path_name(path) -> str:
  """Returns the path of a leaf of nested dicts, with slashes."""
  return '/'.join(str(getattr(part, 'key', part)) for part in path)


def logical_factor_rules() -> dict[str, object]:
  """Returns T5X's rules for Adafactor, and one for learned positions.

  T5X names the axis of the paper's positions and partitions it, but has no rule
  for factoring its second moments. This rule gives each position its own.
  """
  from t5x import adafactor

  return {
    **adafactor.standard_logical_factor_rules(),
    'abspos_buckets': adafactor.FactorDim.NONE,
  }
