"""Which of a family's cases every test run has; the others are slow."""

from collections.abc import Iterable

import pytest


def first(cases: Iterable, count: int = 1) -> list:
  """Returns the cases of a parametrised test, all after the first ones slow."""
  return [
    case
    if number < count
    else pytest.param(
      *(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow
    )
    for number, case in enumerate(cases)
  ]
