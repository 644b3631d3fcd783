"""Which of a family's cases every test run has; the others are slow."""

import itertools
from collections.abc import Iterable

import pytest


def first(cases: Iterable, count: int = 1) -> list:
  """Returns the cases of a parametrised test, all after the first ones slow."""
  cases = iter(cases)
  return [*itertools.islice(cases, count), *others(cases)]


def others(cases: Iterable) -> list:
  """Returns the cases of a parametrised test, all slow."""
  return [
    pytest.param(
      *(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow
    )
    for case in cases
  ]
