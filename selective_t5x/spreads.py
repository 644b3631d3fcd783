"""Mean and range over seeds, and what paired differences say."""

import statistics
from collections.abc import Sequence
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
    None below three seeds, and where all differences are equal.
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
    out['difference'] = {**spread(values), **_inference(values)}
  return out


def _inference(differences) -> dict[str, Any]:
  """Returns what paired differences say of their mean, see `spread`."""
  few = len(differences) < SEEDS_FOR_A_TEST
  if few or None in differences or len(set(differences)) == 1:
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
