"""Functions for gin files, which have no arithmetic of their own."""


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
  """Returns 2 * number: see gin/attention/twice_the_heads.gin."""
  return 2 * number


def logical_factor_rules() -> dict[str, object]:
  """Returns T5X's rules for Adafactor, and one for learned positions.

  T5X names the axis of the paper's positions, and says how to partition it, but
  not how its second moments are factored: each position has its own.
  """
  from t5x import adafactor

  return {
    **adafactor.standard_logical_factor_rules(),
    'abspos_buckets': adafactor.FactorDim.NONE,
  }
