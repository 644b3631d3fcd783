"""Confidence sequences: tests of a mean that stay valid when seeds are added.

An interval of a fixed number of seeds is wrong if one looks at it, adds a seed
and looks again: the chance that one of the looks misses the mean grows. The
intervals here hold at all looks at once. With chance 1 - alpha, all of them
contain the mean, whenever one stops.

Source: the test martingale of normal values of unknown variance whose effect
size (mean over standard deviation) has a normal prior with mean 0 and whose
scale has the right Haar prior: Lai, "On confidence sequences", Annals of
Statistics 4 (1976); Wang and Ramdas, "Anytime-valid t-tests and confidence
sequences for Gaussian means with unknown variance", arXiv 2310.03722, where it
is the scale-invariant mixture. Ville's inequality bounds the chance that it
ever reaches 1 / alpha by alpha. Derived again here; the prior's width is ours.
With n values, their sum S after subtraction of the mean that is tested, their
sum of squares V, and c = 1 / EFFECT,

  M_n = sqrt(c^2 / (n + c^2)) * (1 - S^2 / ((n + c^2) V))^(-n / 2).

The paired differences of seeds must be independent and normal. Skewed or
heavy-tailed ones weaken the promise; docs/results.md has simulations.
"""

import math
from collections.abc import Sequence

import numpy as np

# The prior's standard deviation of an effect size. Differences between models
# that share a seed's data vary little beside their mean, so it is large: the
# interval of three values is then nearly as narrow as any prior makes it.
EFFECT = 4.0
_C2 = EFFECT**-2


def log_martingale(values: np.ndarray, mean: float = 0.0) -> np.ndarray:
  """Returns log M_n for each number n of first values.

  Args:
    values: f64[..., N], one per seed in the order of seeds. Leading axes are
      independent experiments.
    mean: the mean that is tested.

  Returns:
    f64[..., N]. The first is 0. It is infinite if values are equal but not to
    the mean.
  """
  values = np.asarray(values, np.float64) - mean
  number = np.arange(1, values.shape[-1] + 1)
  squared_sum = np.cumsum(values, axis=-1) ** 2
  squares = np.cumsum(values**2, axis=-1)
  with np.errstate(divide='ignore', invalid='ignore'):
    # S^2 / (n V), at most 1; nothing speaks against a mean where V is 0.
    share = np.where(squares > 0, squared_sum / (number * squares), 0.0)
    share = np.minimum(share, 1.0)
    # 1 - share * n / (n + c^2) without the loss of digits near share = 1.
    rest = ((1 - share) * number + _C2) / (number + _C2)
  return 0.5 * np.log(_C2 / (number + _C2)) - 0.5 * number * np.log(rest)


def half_widths(number: np.ndarray | int, alpha: float) -> np.ndarray:
  """Returns the half width of the interval in standard errors s / sqrt(n).

  Args:
    number: n, numbers of values.
    alpha: one minus the confidence, of all looks together.

  Returns:
    f64, the |t| at which M_n reaches 1 / alpha; infinite where n values can
    never reach it.
  """
  number = np.asarray(number, np.float64)
  log_rest = 2 / number * (math.log(alpha) + 0.5 * np.log(_C2 / (number + _C2)))
  share = -np.expm1(log_rest) * (number + _C2) / number
  with np.errstate(divide='ignore', invalid='ignore'):
    t = np.sqrt((number - 1) * share / (1 - share))
  return np.where((share < 1) & (number > 1), t, np.inf)


def interval(
  values: Sequence[float], alpha: float = 0.05
) -> tuple[float, float] | None:
  """Returns the intersection of the intervals after each number of values.

  Args:
    values: one per seed, in the order of seeds.
    alpha: one minus the confidence, of all looks together.

  Returns:
    (low, high), what no look has excluded; None if that is everything or, which
    has a chance of less than alpha, nothing.
  """
  values = np.asarray(values, np.float64)
  number = np.arange(1, len(values) + 1)
  means = np.cumsum(values) / number
  low, high = -math.inf, math.inf
  for n in number[1:]:
    error = np.std(values[:n], ddof=1) / math.sqrt(n)
    width = float(half_widths(n, alpha))
    if math.isfinite(width):
      half = width * error
      low = max(low, float(means[n - 1] - half))
      high = min(high, float(means[n - 1] + half))
  return (low, high) if math.isfinite(low) and low <= high else None


def p_below(values: Sequence[float], mean: float) -> float:
  """Returns the anytime-valid p-value of "the true mean is at least `mean`".

  It is the least alpha whose interval, at some look, lies below `mean`.

  Args:
    values: one per seed, in the order of seeds.
    mean: the smallest mean that is tested.

  Returns:
    1 if no look had a mean below it.
  """
  values = np.asarray(values, np.float64)
  means = np.cumsum(values) / np.arange(1, len(values) + 1)
  against = np.where(means < mean, log_martingale(values, mean), 0.0)
  return float(np.exp(-max(0.0, *against)))
