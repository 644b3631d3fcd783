"""The paper's greedy search for a budget of keys per layer, in plain Python.

Source: arXiv 2410.02703, section 4.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

Budgets = tuple[int, ...]

# The steps after the large ones; the paper stops at 8.
_SMALL = (8, 6, 4, 3, 2)
STEPS = ('ladder', 'fixed')


@dataclasses.dataclass(frozen=True)
class Point:
  """The budgets of all layers, and their loss on the tuning split."""

  budgets: Budgets
  loss: float


def budget_steps(steps: str, length: int) -> list[int]:
  """Returns the budgets that a layer steps through, in falling order.

  Args:
    steps: 'fixed', the multiples of 8, as in the paper; or 'ladder', which
      halves. Below 8 both continue with 6, 4, 3, 2.
    length: N, the context length and the first budget, 2 or more.
  """
  if steps == 'fixed':
    large = [length, *range((length - 1) // 8 * 8, 8, -8)]
  else:
    large = [length]
    while large[-1] // 2 > 8:
      large.append(large[-1] // 2)
  return large + [budget for budget in _SMALL if budget < length]


def candidates(
  budgets: Budgets, steps: Sequence[int], *, uniform: bool = False
) -> list[Budgets]:
  """Returns the budgets with one layer cut by a step, for every such layer.

  Args:
    budgets: the budget of each layer, one of the steps.
    steps: see `budget_steps`.
    uniform: cut all layers together, which gives one candidate.
  """
  lower = dict(zip(steps, steps[1:], strict=False))
  if uniform:
    can = all(budget in lower for budget in budgets)
    return [tuple(lower[budget] for budget in budgets)] if can else []
  return [
    (*budgets[:layer], lower[budget], *budgets[layer + 1 :])
    for layer, budget in enumerate(budgets)
    if budget in lower
  ]


def search(
  losses: Callable[[Sequence[Budgets]], Sequence[float]],
  start: Budgets,
  steps: Sequence[int],
  target: float,
  *,
  uniform: bool = False,
) -> Iterator[Point]:
  """Repeatedly cuts the layer whose cut leaves the lowest loss.

  It stops when every remaining cut would raise the loss above the target. A cut
  may lower the loss. Of equal losses the first layer's wins.

  Args:
    losses: returns the loss with each of some budgets.
    start: where to begin. The last yield of an interrupted search resumes it.
    steps: see `budget_steps`.
    target: the highest acceptable loss.
    uniform: cut all layers together.

  Yields:
    The point after each cut.
  """
  budgets = start
  while tried := candidates(budgets, steps, uniform=uniform):
    results = list(losses(tried))
    best = min(range(len(tried)), key=results.__getitem__)
    if not results[best] <= target:
      return
    budgets = tried[best]
    yield Point(budgets, results[best])


def memory_factor(budgets: Budgets, length: int) -> float:
  """Returns how many times fewer keys are kept: L * N / sum of K_l."""
  return len(budgets) * length / sum(budgets)
