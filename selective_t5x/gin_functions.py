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
