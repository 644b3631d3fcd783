"""The greedy search makes the cuts that a brute-force one makes."""

import itertools
import random

import pytest

from selective_t5x.pruning import greedy


@pytest.mark.parametrize(
  ('steps', 'length', 'expected'),
  [
    ('ladder', 256, [256, 128, 64, 32, 16, 8, 6, 4, 3, 2]),
    ('ladder', 100, [100, 50, 25, 12, 8, 6, 4, 3, 2]),
    ('ladder', 8, [8, 6, 4, 3, 2]),
    ('ladder', 5, [5, 4, 3, 2]),
    ('fixed', 40, [40, 32, 24, 16, 8, 6, 4, 3, 2]),
    ('fixed', 20, [20, 16, 8, 6, 4, 3, 2]),
    ('fixed', 9, [9, 8, 6, 4, 3, 2]),
    ('fixed', 2, [2]),
  ],
)
def test_steps_fall_from_the_length_to_two(steps, length, expected):
  assert greedy.budget_steps(steps, length) == expected


def noise(budgets):
  """A loss that may fall with a cut, and rises with all of them."""
  wobble = random.Random(repr(budgets)).random()
  return sum(1 / budget for budget in budgets) + 0.3 * wobble


def brute_force(loss, steps, layers, target):
  """Looks at every vector there is, and keeps those one step away."""
  every = list(itertools.product(steps, repeat=layers))
  at, made = (steps[0],) * layers, []
  while True:
    near = [
      other
      for other in every
      if sum(
        steps.index(b) - steps.index(a) for a, b in zip(at, other, strict=True)
      )
      == 1
      and all(b <= a for a, b in zip(at, other, strict=True))
    ]
    near = [other for other in near if loss(other) <= target]
    if not near:
      return made
    at = min(near, key=loss)
    made.append(at)


@pytest.mark.parametrize('target', [0.1, 0.7, 1.1, 9.0])
def test_cuts_are_those_of_brute_force(target):
  steps = greedy.budget_steps('ladder', 16)
  result = list(
    greedy.search(lambda many: map(noise, many), (16,) * 3, steps, target)
  )
  assert [p.budgets for p in result] == brute_force(noise, steps, 3, target)
  assert [p.loss for p in result] == [noise(p.budgets) for p in result]
  cuts = {0.1: 0, 9.0: 3 * (len(steps) - 1)}
  assert len(result) == cuts.get(target, len(result))


def test_a_cut_may_lower_the_loss_and_the_target_is_a_bound_on_all():
  losses = [p.loss for p in cuts((16,) * 3)]
  assert any(b < a for a, b in itertools.pairwise(losses))
  assert 3 < len(losses) and max(losses) <= 1.1


def cuts(start):
  steps = greedy.budget_steps('fixed', 16)
  return list(greedy.search(lambda many: map(noise, many), start, steps, 1.1))


def test_it_goes_on_from_any_cut():
  whole = cuts((16,) * 3)
  for done in range(1, len(whole) + 1):
    assert cuts(whole[done - 1].budgets) == whole[done:]


def test_uniform_budgets_are_cut_together():
  result = greedy.search(
    lambda many: [2 / b[0] for b in many],
    (16, 16),
    [16, 8, 4, 2],
    0.5,
    uniform=True,
  )
  assert [p.budgets for p in result] == [(8, 8), (4, 4)]


def test_a_loss_that_is_no_number_is_never_accepted():
  nan = float('nan')
  result = greedy.search(lambda many: [nan] * len(many), (8, 8), [8, 4], 9.0)
  assert not list(result)


def test_equal_losses_cut_the_first_layer():
  result = greedy.search(lambda many: [1.0] * len(many), (8, 8), [8, 4], 1.0)
  assert [p.budgets for p in result] == [(4, 8), (4, 4)]


def test_the_memory_factor_is_that_of_all_keys():
  assert greedy.memory_factor((32, 32, 32, 32), 32) == 1
  assert greedy.memory_factor((2, 6), 64) == 16
