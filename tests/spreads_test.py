import numpy as np
import pytest

from selective_t5x.spreads import spread


def test_a_loss_that_is_not_finite_gives_no_mean():
  got = spread([None, 1.0, 2.0], reference=[1.0, 1.0, 1.0])
  assert got['mean'] is None and got['difference']['mean'] is None
  assert got['difference']['p_value'] is None


def test_equal_differences_have_no_p_value():
  got = spread([2.0, 3.0, 4.0], reference=[1.0, 2.0, 3.0])
  assert got['difference']['mean'] == 1
  assert got['difference']['p_value'] is None
  assert got['difference']['interval'] is None
  assert got['difference']['t_interval'] is None


def test_an_interval_narrows_with_seeds():
  rng = np.random.default_rng(0)
  differences = rng.normal(1, 1, 400).tolist()
  widths = []
  for seeds in (25, 400):
    found = spread(differences[:seeds], reference=[0.0] * seeds)['difference']
    low, high = found['interval']
    assert low < found['mean'] < high
    widths.append(high - low)
  # 2 x 1.96 x 1 / sqrt(400); a quarter of that of 25.
  assert widths[1] == pytest.approx(0.196, rel=0.15)
  assert widths[0] == pytest.approx(4 * widths[1], rel=0.3)
