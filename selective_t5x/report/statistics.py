"""Mean and range over seeds, and what paired differences say.

Metrics are float32. Two differences of such numbers that are nearer to each
other than `rounding` are taken to be equal: a paired test of them would divide
by the spread that rounding left, and find any difference significant.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# Fewer pairs give a paired test nothing to estimate a spread from.
SEEDS_FOR_A_TEST = 3
SIGNIFICANT = 0.05


def spread(
  values: Sequence[float | None],
  reference: Sequence[float | None] | None = None,
) -> dict[str, Any]:
  """Returns mean and range of one value a seed, and of paired differences.

  Args:
    values: one a seed; None where a run has none (it was not finite).
    reference: the values of the reference with the same seeds.

  Returns:
    values, mean, min, max, all None where a value is; with a reference also
    'difference', the same of value - reference with a 'p_value', of a two-sided
    paired t-test, and two 95 % intervals, [low, high], of its mean:
    't_interval', that of the test, and 'interval', by the percentiles of
    bootstrap samples of the seeds, too narrow where they are few. All three are
    None below three seeds, and where all differences are equal within
    'rounding', which is there too.
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
  """Returns how far apart rounding puts two differences of float32 numbers.

  Each of the four numbers is off by up to 2^-24 of itself.

  Args:
    values: all that differences are taken of; those that are None do not count.
  """
  return 2.0**-22 * max((abs(x) for x in values if x is not None), default=0.0)


def all_equal(difference: Mapping[str, Any]) -> bool:
  """Whether all seeds have the same difference within rounding.

  Args:
    difference: of `spread`; one without 'rounding' is compared exactly.
  """
  if difference['mean'] is None:
    return False
  width = difference['max'] - difference['min']
  return width <= difference.get('rounding', 0.0)


def is_zero(difference: Mapping[str, Any]) -> bool:
  """Whether no seed has a difference but for rounding; see `all_equal`."""
  return all_equal(difference) and abs(difference['mean']) <= difference.get(
    'rounding', 0.0
  )


def decimals(difference: Mapping[str, Any], least: int) -> int:
  """Returns how many decimals a difference and its interval are printed with.

  Two significant digits of the wider of its 95 % intervals, or where there is
  none of its range, or where all seeds are equal of the difference itself.

  Args:
    difference: of `spread`.
    least: no fewer than these.
  """
  ends = [difference.get('interval'), difference.get('t_interval')]
  widths = [end[1] - end[0] for end in ends if end is not None]
  if not widths and not all_equal(difference):
    widths = [difference['max'] - difference['min']]
  return significant(max(widths, default=difference['mean']), least)


def significant(value: float, least: int) -> int:
  """Returns the decimals for two significant digits; `least` to 12."""
  if not value:
    return least
  return min(12, max(least, 1 - math.floor(math.log10(abs(value)))))


def _inference(difference) -> dict[str, Any]:
  """Returns what paired differences say of their mean, see `spread`."""
  differences = difference['values']
  few = len(differences) < SEEDS_FOR_A_TEST
  if few or None in differences or all_equal(difference):
    return {'p_value': None, 'interval': None, 't_interval': None}
  from scipy import stats  # Takes a second to import.

  interval = stats.bootstrap(
    (differences,), np.mean, method='percentile', random_state=0
  ).confidence_interval
  test = stats.ttest_1samp(differences, 0)
  return {
    'p_value': float(test.pvalue),
    'interval': [float(end) for end in interval],
    't_interval': [float(end) for end in test.confidence_interval()],
  }
