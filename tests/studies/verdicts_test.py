"""Every rule of a verdict can say yes, no and undecided."""

import pytest

from selective_t5x.report.statistics import spread
from selective_t5x.studies import evidence, verdicts
from selective_t5x.studies.evidence import (
  NOT_REPRODUCED,
  REPRODUCED,
  UNDECIDED,
)


def comparison(task='t', **variants):
  """A comparison's figures: variant=[a value a seed], of both metrics."""
  return {
    'loss': 'loss',
    'seeds': list(range(len(next(iter(variants.values()))))),
    'results': [
      {
        'task': task,
        'variant': name,
        'metrics': {metric: spread(values) for metric in ('loss', 'accuracy')},
      }
      for name, values in variants.items()
    ],
  }


SOLVES = verdicts.Solves('t', ('a',), ('b',))


@pytest.mark.parametrize(
  'a, b, verdict',
  [
    ([0.99, 1.0, 1.0], [0.5, 0.2, 0.98], REPRODUCED),
    ([0.98, 0.9, 0.5], [0.5, 0.2, 0.1], NOT_REPRODUCED),
    ([1.0, 1.0, 1.0], [1.0, 0.99, 1.0], NOT_REPRODUCED),
    ([1.0, 0.98, 1.0], [0.5, 0.2, 0.1], UNDECIDED),
    ([1.0, 1.0, 1.0], [0.5, 0.2, 0.995], UNDECIDED),
    ([1.0, 1.0], [0.5, 0.2], UNDECIDED),
    ([None, None, None], [0.5, 0.2, 0.1], NOT_REPRODUCED),
  ],
)
def test_a_task_is_solved_by_some_and_not_by_others(a, b, verdict):
  judged = SOLVES.judge(comparison(a=a, b=b))
  assert judged.verdict == verdict
  assert judged.numbers == {'a_accuracy': a, 'b_accuracy': b}


# With three seeds the half width is 2.48 standard deviations.
@pytest.mark.parametrize(
  'differences, lower, no_worse, same',
  [
    ([-0.5, -0.49, -0.51], REPRODUCED, REPRODUCED, NOT_REPRODUCED),
    ([0.5, 0.49, 0.51], NOT_REPRODUCED, NOT_REPRODUCED, NOT_REPRODUCED),
    ([0.5, -0.5, 0.1], UNDECIDED, UNDECIDED, UNDECIDED),
    # Nearly nothing, well measured: no gain, no harm.
    ([0.001, -0.001, 0.0], NOT_REPRODUCED, REPRODUCED, REPRODUCED),
    ([-0.03, -0.04, -0.05], REPRODUCED, REPRODUCED, UNDECIDED),
    ([-0.05, -0.05, -0.05], REPRODUCED, REPRODUCED, NOT_REPRODUCED),
    ([-0.5, -0.49], UNDECIDED, UNDECIDED, UNDECIDED),
    ([-0.5, None, -0.5], UNDECIDED, UNDECIDED, UNDECIDED),
  ],
)
def test_losses_differ(differences, lower, no_worse, same):
  # Exact in binary, so that equal differences stay equal.
  reference = [4.0, 8.0, 16.0][: len(differences)]
  values = [
    None if d is None else r + round(d * 2**20) / 2**20
    for d, r in zip(differences, reference, strict=True)
  ]
  figures = comparison(a=values, b=reference)
  for rule, verdict in (
    (verdicts.Lower('t', 'a', 'b'), lower),
    (verdicts.Lower('t', 'a', 'b', verdicts.NEGLIGIBLE), no_worse),
    (verdicts.Same('t', 'a', 'b'), same),
  ):
    judged = rule.judge(figures)
    assert judged.verdict == verdict, rule
    assert 'a - b' in judged.text and 'a_loss' in judged.numbers


def test_the_interval_is_that_of_the_t_test():
  figures = comparison(a=[3.5, 3.6, 3.7], b=[4.0, 4.0, 4.0])
  judged = verdicts.Lower('t', 'a', 'b').judge(figures)
  # 4.303 of t with 2 degrees of freedom, 0.1 / sqrt(3) the standard error.
  assert judged.numbers['interval'] == pytest.approx(
    [-0.4 - 4.303 * 0.1 / 3**0.5, -0.4 + 4.303 * 0.1 / 3**0.5], abs=1e-4
  )
  assert judged.text == 'loss a - b: -0.400 (-0.648 to -0.152)'


def test_rounding_decides_nothing():
  reference = [2.0, 2.3, 2.7]
  rounded = comparison(a=[x - 1e-8 for x in reference], b=reference)
  judged = verdicts.Lower('t', 'a', 'b').judge(rounded)
  assert judged.verdict == NOT_REPRODUCED
  assert judged.text == 'loss a - b: equal within rounding in every seed'
  assert judged.numbers['p_value'] is None
  # A gap of 0.1 in every seed, equal but for rounding: its own size decides.
  constant = comparison(a=[x - 0.1 for x in reference], b=reference)
  judged = verdicts.Lower('t', 'a', 'b').judge(constant)
  assert judged.verdict == REPRODUCED
  assert judged.text == 'loss a - b: -0.100, no interval'
  # 8 / 3 - 5 / 3 is not exactly 1, and (x + y) - y not x.
  same = points(a=[1 / 3 + 1e-16, 0.3, 0.7], b=[1 / 3, 0.1 + 0.2, 0.7])
  judged = verdicts.Smaller('kind', 'a', ('b',)).judge(same)
  assert judged.verdict == NOT_REPRODUCED
  plain = [5.0, 5.1, 5.2]
  ssa = [x - 2e-7 for x in plain]
  per_seed = {'plain': {'m': plain}, 'ssa': {'m': ssa}}
  figures = {'seeds': 3, 'size_4': {'per_seed': per_seed}}
  judged = verdicts.LowerWithTemperatures('m').judge(figures)
  assert judged.verdict == UNDECIDED


def test_a_small_difference_is_shown_with_its_digits():
  reference = [3.0, 3.1, 3.2]
  gaps = [2e-5, 2.5e-5, 1.8e-5]
  figures = comparison(
    a=[x + gap for x, gap in zip(reference, gaps, strict=True)], b=reference
  )
  judged = verdicts.Same('t', 'a', 'b').judge(figures)
  assert judged.text == 'loss a - b: +0.000021 (+0.000012 to +0.000030)'


def points(**factors):
  """What `pruning.best_points` gives for each seed; 0 is None."""
  return [
    {
      'kind': {
        name: value and {'memory_factor': value}
        for name, value in zip(factors, of_seed, strict=True)
      }
    }
    for of_seed in zip(*factors.values(), strict=True)
  ]


@pytest.mark.parametrize(
  'a, b, at_least, smaller',
  [
    ([96.0, 95.0, 96.0], [20.0, 11.0, 15.0], REPRODUCED, REPRODUCED),
    ([8.0, 9.0, 8.0], [20.0, 21.0, 22.0], NOT_REPRODUCED, NOT_REPRODUCED),
    ([8.0, 96.0, 16.0], [20.0, 21.0, 22.0], UNDECIDED, UNDECIDED),
    ([0, 0, 0], [20.0, 21.0, 22.0], NOT_REPRODUCED, NOT_REPRODUCED),
    ([96.0, 96.0, 96.0], [20.0, 20.0, 20.0], REPRODUCED, REPRODUCED),
    ([96.0, 96.0], [20.0, 21.0], UNDECIDED, UNDECIDED),
  ],
)
def test_caches_are_smaller(a, b, at_least, smaller):
  figures = points(a=a, b=b, c=[1.0] * len(a))
  judged = verdicts.MemoryFactor('kind', 'a', 16).judge(figures)
  assert judged.verdict == at_least
  judged = verdicts.Smaller('kind', 'a', ('b', 'c')).judge(figures)
  assert judged.verdict == smaller
  assert judged.numbers['b_memory_factor'] == b


@pytest.mark.parametrize(
  'gaps, verdict',
  [
    ([[-2.0, -2.1, -1.9], [-3.0, -3.1, -2.8]], REPRODUCED),
    ([[-2.0, -2.1, -1.9], [1.0, 1.1, 1.05]], NOT_REPRODUCED),
    ([[-2.0, -2.1, -1.9], [-1.0, 1.0, 0.2]], UNDECIDED),
    # p = 0.03 of one size against it, 0.06 of two.
    ([[-2.0, -2.1, -1.9], [1.0, 1.6, 1.9]], UNDECIDED),
    ([[-2.0], [-3.0]], UNDECIDED),
  ],
)
def test_temperatures_lower_a_measure(gaps, verdict):
  figures = {'seeds': len(gaps[0]), 'steps': 10}
  for size, of_size in zip((4, 8), gaps, strict=True):
    plain = [5.0 + seed for seed in range(len(of_size))]
    ssa = [x + gap for x, gap in zip(plain, of_size, strict=True)]
    per_seed = {'plain': {'m': plain}, 'ssa': {'m': ssa}}
    figures[f'size_{size}'] = {'per_seed': per_seed}
  judged = verdicts.LowerWithTemperatures('m').judge(figures)
  assert judged.verdict == verdict
  assert judged.numbers['size_4_difference'] == pytest.approx(-2)


def test_added_seeds_are_judged_by_a_confidence_sequence():
  reference = [4.0, 4.1, 4.2]
  gaps = [-0.40, -0.42, -0.45]
  values = [a + b for a, b in zip(reference, gaps, strict=True)]
  rule = verdicts.Lower('t', 'a', 'b')
  fixed = rule.judge(comparison(a=values, b=reference))
  added = rule.judge(comparison(a=values, b=reference), sequential=True)
  assert fixed.verdict == added.verdict == REPRODUCED
  low, high = added.numbers['confidence_sequence']
  narrow, _ = fixed.numbers['interval']
  assert low < narrow < high < 0
  assert added.evidence.supports > fixed.evidence.supports
  assert added.text.endswith('; 3 seeds)')
  # One of the two may have more seeds.
  figures = comparison(a=values, b=reference)
  figures['results'][1]['metrics']['loss'] = spread([*reference, 9.0])
  assert rule.judge(figures, sequential=True).numbers['seeds'] == 3


def test_what_is_out_of_reach_says_why():
  judged = verdicts.OutOfReach('no time').judge(None)
  assert (judged.verdict, judged.text) == (evidence.OUT_OF_REACH, 'no time')
