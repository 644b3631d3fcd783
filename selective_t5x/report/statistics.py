"""Mean and range over seeds, and tests of paired differences.

Metrics are float32. Two differences of such numbers count as equal if they are
nearer than `rounding`: a paired test would divide by the spread of rounding
errors and call any difference significant.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# A paired test cannot estimate a spread from fewer pairs.
SEEDS_FOR_A_TEST = 3
SIGNIFICANT = 0.05


def spread(
  values: Sequence[float | None],
  reference: Sequence[float | None] | None = None,
) -> dict[str, Any]:
  """Returns mean and range of one value per seed, and of paired differences.

  Args:
    values: one per seed; None if it was not finite.
    reference: the values of the reference with the same seeds.

  Returns:
    values, mean, min, max; the last three are None if a value is None.
    difference: only with a reference: the same of value - reference, and
      rounding: see `rounding`.
      p_value: of a two-sided paired t-test.
      t_interval: [low, high], 95 % interval of the mean by that test.
      interval: the same by bootstrap percentiles; too narrow with few seeds.
      The last three are None with fewer than three seeds, or if all differences
      are equal within rounding.
  """
  values = list(values)
  known = values and None not in values
  out = {
    'values': values,
    'mean': statistics.fmean(values) if known else None,
    'min': min(values) if known else None,
    'max': max(values) if known else None,
  }
  if reference is not None:
    pairs = list(zip(values, reference, strict=True))
    missing = any(None in pair for pair in pairs)
    values = [None if missing else a - b for a, b in pairs]
    difference = spread(values)
    difference['rounding'] = rounding(x for pair in pairs for x in pair)
    out['difference'] = {**difference, **_inference(difference)}
  return out


def rounding(values: Iterable[float | None]) -> float:
  """Returns the largest rounding error between two differences of float32.

  Each of the four numbers has a relative error of up to 2^-24.

  Args:
    values: all minuends and subtrahends; None is ignored.
  """
  return 2.0**-22 * max((abs(x) for x in values if x is not None), default=0.0)


def all_equal(difference: Mapping[str, Any]) -> bool:
  """Whether all seeds have the same difference within rounding.

  Args:
    difference: a result of `spread`; without 'rounding' it is compared exactly.
  """
  if difference['mean'] is None:
    return False
  width = difference['max'] - difference['min']
  return width <= difference.get('rounding', 0.0)


def is_zero(difference: Mapping[str, Any]) -> bool:
  """Whether all differences are zero within rounding; see `all_equal`."""
  return all_equal(difference) and abs(difference['mean']) <= difference.get(
    'rounding', 0.0
  )


def decimals(difference: Mapping[str, Any], least: int) -> int:
  """Returns the number of decimals to print of a difference and its interval.

  They show two significant digits of the wider 95 % interval, without intervals
  of the range, and if all seeds are equal of the difference itself.

  Args:
    difference: a result of `spread`.
    least: the smallest number of decimals.
  """
  ends = [difference.get('interval'), difference.get('t_interval')]
  widths = [end[1] - end[0] for end in ends if end is not None]
  if not widths and not all_equal(difference):
    widths = [difference['max'] - difference['min']]
  return significant(max(widths, default=difference['mean']), least)


def significant(value: float, least: int) -> int:
  """Returns the decimals for two significant digits, from `least` to 12."""
  if not value:
    return least
  return min(12, max(least, 1 - math.floor(math.log10(abs(value)))))


def _inference(difference) -> dict[str, Any]:
  """Returns p_value, interval and t_interval of `spread`."""
  differences = difference['values']
  few = len(differences) < SEEDS_FOR_A_TEST
  if few or None in differences or all_equal(difference):
    return {'p_value': None, 'interval': None, 't_interval': None}
  from scipy import stats  # This import takes a second.

  interval = stats.bootstrap(
    (differences,), np.mean, method='percentile', random_state=0
  ).confidence_interval
  test = stats.ttest_1samp(differences, 0)
  return {
    'p_value': float(test.pvalue),
    'interval': [float(end) for end in interval],
    't_interval': [float(end) for end in test.confidence_interval()],
  }
