import numpy as np
import pytest

from selective_t5x.report import statistics, tables
from selective_t5x.report.statistics import spread


def test_a_loss_that_is_not_finite_gives_no_mean():
  got = spread([None, 1.0, 2.0], reference=[1.0, 1.0, 1.0])
  assert got['mean'] is None and got['difference']['mean'] is None
  assert got['difference']['p_value'] is None


def test_equal_differences_have_no_p_value():
  got = spread([2.0, 3.0, 4.0], reference=[1.0, 2.0, 3.0])
  assert got['difference']['mean'] == 1
  assert got['difference']['p_value'] is None
  assert got['difference']['t_interval'] is None


def test_an_interval_narrows_with_seeds():
  rng = np.random.default_rng(0)
  differences = rng.normal(1, 1, 400).tolist()
  widths = []
  for seeds in (25, 400):
    result = spread(differences[:seeds], reference=[0.0] * seeds)['difference']
    low, high = result['t_interval']
    assert low < result['mean'] < high
    widths.append(high - low)
  # 2 x 1.96 x 1 / sqrt(400); a quarter of that of 25.
  assert widths[1] == pytest.approx(0.196, rel=0.15)
  assert widths[0] == pytest.approx(4 * widths[1], rel=0.3)


def test_differences_that_are_equal_but_for_rounding_have_no_p_value():
  reference = [2.0, 2.3, 4.7]
  for values in (
    [x - 0.1 for x in reference],  # Float64 rounds it.
    [float(np.float32(x - 0.1)) for x in reference],
  ):
    difference = spread(values, reference)['difference']
    assert len(set(difference['values'])) > 1
    assert difference['p_value'] is None
    assert difference['t_interval'] is None
    assert statistics.all_equal(difference), difference
    assert not statistics.is_zero(difference)
  same = spread([x + 1e-8 for x in reference], reference)['difference']
  assert statistics.is_zero(same)


def test_a_small_difference_that_seeds_agree_on_is_no_rounding():
  reference = [3.0, 3.1, 3.2]
  gaps = [2e-5, 2.5e-5, 1.8e-5]
  values = [a + b for a, b in zip(reference, gaps, strict=True)]
  difference = spread(values, reference)['difference']
  assert not statistics.all_equal(difference)
  assert 0 < difference['p_value'] < 0.05


@pytest.mark.parametrize(
  ('gaps', 'shown'),
  [
    # The t interval is 0.1 wide: four decimals are more than enough.
    ([0.1, 0.12, 0.14], '+0.1200 [+0.1000, +0.1400] p=0.0091'),
    # Its width is 1.8e-5, whose second digit is the sixth decimal.
    ([2e-5, 2.5e-5, 1.8e-5], '+0.000021 [+0.000018, +0.000025] p=0.0097'),
    ([-0.1, -0.1, -0.1], '-0.1000 in every seed'),
    ([3e-6, 3e-6, 3e-6], '+0.0000030 in every seed'),
    ([1e-8, -1e-8, 0], 'equal within rounding'),
    ([2e-5], '+0.000020'),
  ],
)
def test_differences_are_printed_with_the_digits_that_they_have(gaps, shown):
  reference = [3.0, 3.1, 3.2][: len(gaps)]
  values = [a + b for a, b in zip(reference, gaps, strict=True)]
  entries = [
    {'variant': name, 'metrics': {'loss': spread(*of)}}
    for name, of in (('a', (reference,)), ('b', (values, reference)))
  ]
  rows = tables._with_differences(entries, ('loss',), {'a': 'a', 'b': 'a'})
  assert rows[-1] == ('b - a', shown)


def test_a_loss_near_zero_is_not_printed_as_zero():
  (row,) = tables._with_differences(
    [{'variant': 'a', 'metrics': {'loss': spread([2e-5, 4e-5])}}],
    ('loss',),
    {'a': 'a'},
  )
  assert row == ('a', '0.000030 [0.000020, 0.000040]')


def test_p_values_are_the_levels_of_intervals():
  difference = spread([3.5, 3.6, 3.7], reference=[4.0] * 3)['difference']
  low, high = difference['t_interval']
  assert statistics.p_below(difference, high) == pytest.approx(0.05)
  assert statistics.p_above(difference, low) == pytest.approx(0.05)
  assert statistics.p_below(difference, 0) < 0.05
  assert statistics.p_below(difference, low) == 1.0
  assert statistics.p_below(difference, 0) == difference['p_value']
  # Two seeds, and a value that is not finite, are no evidence.
  for values in ([3.5, 3.6], [3.5, None, 3.6]):
    gap = spread(values, reference=[4.0] * len(values))['difference']
    assert statistics.p_below(gap, 0) == statistics.p_above(gap, -1) == 1


def test_rounding_is_evidence_of_nothing_and_a_constant_of_its_size():
  reference = [2.0, 2.3, 2.7]
  zero = spread([x - 1e-8 for x in reference], reference)['difference']
  constant = spread([x - 0.1 for x in reference], reference)['difference']
  for sequential in (False, True):
    said = {'sequential': sequential}
    assert statistics.p_below(zero, 0, **said) == 1
    assert statistics.p_below(zero, 0.01, **said) < 0.05
    assert statistics.p_below(constant, 0, **said) < 0.05
    assert statistics.p_above(constant, -0.2, **said) < 0.05
    assert statistics.p_above(constant, 0, **said) == 1


def test_holm_by_hand():
  # 3 x 0.01; 2 x 0.02 = 0.04; 0.3 x 1.
  assert statistics.holm([0.02, 0.3, 0.01]) == pytest.approx([0.04, 0.3, 0.03])
  # A later one is never below an earlier one.
  assert statistics.holm([0.02, 0.021]) == pytest.approx([0.04, 0.04])
  assert statistics.holm([0.02, 0.5], family=4) == pytest.approx([0.08, 1.0])
  assert statistics.holm([]) == []


def test_differences_of_one_column_are_corrected_together():
  reference = [3.0, 3.1, 3.2]
  gaps = [[0.1, 0.12, 0.14], [0.1, 0.1, 0.1], [-0.1, 0.2, 0.1]]
  differences = [
    spread([a + b for a, b in zip(reference, of_one, strict=True)], reference)[
      'difference'
    ]
    for of_one in gaps
  ]
  statistics.correct([{}, *differences])
  first, constant, last = differences
  assert first['p_corrected'] == pytest.approx(2 * first['p_value'])
  assert last['p_corrected'] == pytest.approx(last['p_value'])
  assert 'p_corrected' not in constant and first['p_family'] == 2


def test_ten_comparisons_make_a_false_claim_in_5_percent_and_not_in_40():
  rng = np.random.default_rng(0)
  values = rng.normal(size=(4000, 10, 3))
  from scipy import stats

  p_values = stats.ttest_1samp(values, 0, axis=-1).pvalue
  assert (p_values.min(axis=1) <= 0.05).mean() == pytest.approx(0.40, abs=0.03)
  false = [min(statistics.holm(row)) <= 0.05 for row in p_values]
  # Three standard errors of 4,000 experiments: 0.010.
  assert np.mean(false) <= 0.05 + 0.010


def test_t_intervals_of_three_seeds_cover_the_mean_and_a_bootstrap_does_not():
  rng = np.random.default_rng(0)
  values = rng.normal(size=(4000, 3))
  covered = []
  for row in values[:1000]:
    low, high = spread(row.tolist(), [0.0] * 3)['difference']['t_interval']
    covered.append(low <= 0 <= high)
  # Three standard errors: 0.021.
  assert np.mean(covered) >= 0.95 - 0.021
  # Percentiles of all 27 samples of three, what the t interval replaced.
  picks = np.array(np.meshgrid(*[range(3)] * 3)).reshape(3, -1)
  means = np.sort(values[:, picks].mean(axis=1), axis=-1)
  inside = (means[:, 0] <= 0) & (means[:, -1] >= 0)
  assert inside.mean() < 0.80
