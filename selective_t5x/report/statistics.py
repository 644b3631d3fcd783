"""Mean and range over seeds, and tests of paired differences.

Intervals are those of the t-test. Percentiles of a bootstrap would cover the
mean of three normal values in 68 % of cases in place of 95 %.

Metrics are float32. Two differences of such numbers count as equal if they are
nearer than `rounding`: a paired test would divide by the spread of rounding
errors and call any difference significant.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from selective_t5x.report import sequences

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
      The last two are None with fewer than three seeds, or if all differences
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

  They show two significant digits of the 95 % interval, without an interval of
  the range, and if all seeds are equal of the difference itself.

  Args:
    difference: a result of `spread`.
    least: the smallest number of decimals.
  """
  if difference.get('t_interval') is not None:
    low, high = difference['t_interval']
    return significant(high - low, least)
  if not all_equal(difference):
    return significant(difference['max'] - difference['min'], least)
  return significant(difference['mean'], least)


def significant(value: float, least: int) -> int:
  """Returns the decimals for two significant digits, from `least` to 12."""
  if not value:
    return least
  return min(12, max(least, 1 - math.floor(math.log10(abs(value)))))


def p_below(
  difference: Mapping[str, Any], mean: float, *, sequential: bool = False
) -> float:
  """Returns the least alpha whose two-sided interval lies below a mean.

  Args:
    difference: the paired differences of `spread`.
    mean: the mean to lie below.
    sequential: whether seeds were added after looks: the interval is that of
      `sequences`, not of the t-test.

  Returns:
    for the t-test twice the one-sided p-value of "the true mean is at least
    `mean`", at most 1; if all differences are equal within rounding, 0 or 1 by
    their size. 1 with fewer than three seeds or a value that is not finite.
  """
  return _p_below(difference, difference['values'], mean, sequential)


def p_above(
  difference: Mapping[str, Any], mean: float, *, sequential: bool = False
) -> float:
  """Returns the least alpha whose interval lies above a mean; see `p_below`."""
  values = [None if x is None else -x for x in difference['values']]
  return _p_below(difference, values, -mean, sequential)


def _p_below(difference, values, mean, sequential) -> float:
  if len(values) < SEEDS_FOR_A_TEST or None in values:
    return 1.0
  if is_zero(difference):
    values = [0.0] * len(values)  # The sign of rounding means nothing.
  if sequential:
    return sequences.p_below(values, mean)
  if all_equal(difference):
    return float(statistics.fmean(values) >= mean)
  from scipy import stats  # This import takes a second.

  test = stats.ttest_1samp(values, mean, alternative='less')
  return min(1.0, 2 * float(test.pvalue))


def holm(p_values: Sequence[float], family: int | None = None) -> list[float]:
  """Returns p-values corrected for several tests.

  The chance of one or more false rejections at a level is at most that level,
  whatever the dependence of the tests: Holm, "A simple sequentially rejective
  multiple test procedure", Scandinavian Journal of Statistics 6 (1979).

  Args:
    p_values: those of the tests. They may be anytime-valid ones, taken at any
      time.
    family: the number of tests with those that have no p-value yet.

  Returns:
    the corrected p-values in the same order, at most 1.
  """
  family = len(p_values) if family is None else family
  corrected, least = [1.0] * len(p_values), 0.0
  order = sorted(range(len(p_values)), key=lambda i: p_values[i])
  for rank, i in enumerate(order):
    least = max(least, min(1.0, (family - rank) * p_values[i]))
    corrected[i] = least
  return corrected


def correct(differences: Sequence[dict[str, Any]]) -> None:
  """Adds p_corrected to paired differences that are compared in one table.

  Args:
    differences: those of `spread`. Where one has no p_value, it is no test.
  """
  tested = [d for d in differences if d.get('p_value') is not None]
  p_values = holm([d['p_value'] for d in tested])
  for difference, p_value in zip(tested, p_values, strict=True):
    difference |= {'p_corrected': p_value, 'p_family': len(tested)}


def _inference(difference) -> dict[str, Any]:
  """Returns p_value and t_interval of `spread`."""
  differences = difference['values']
  few = len(differences) < SEEDS_FOR_A_TEST
  if few or None in differences or all_equal(difference):
    return {'p_value': None, 't_interval': None}
  from scipy import stats  # This import takes a second.

  test = stats.ttest_1samp(differences, 0)
  return {
    'p_value': float(test.pvalue),
    't_interval': [float(end) for end in test.confidence_interval()],
  }
