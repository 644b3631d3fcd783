import json

import numpy as np
import pytest

from selective_t5x.errors import UserError
from selective_t5x.studies import token_transition


def test_rows_spread_over_the_tokens_that_follow():
  matrix = token_transition.transitions()
  np.testing.assert_array_equal(
    np.count_nonzero(matrix, axis=1), token_transition.SUCCESSORS
  )
  np.testing.assert_allclose(matrix.sum(axis=1), 1)
  assert matrix[7, 7] == 1 / 8 and matrix[0, 1] == 1 and matrix[3, 5] == 0.5


def test_the_last_line_has_both_models_after_training(
  monkeypatch, tmp_path, capsys
):
  monkeypatch.setattr(token_transition, 'SIZES', (4,))
  token_transition.main(
    ['--seeds=3', '--steps=100', f'--output_dir={tmp_path}']
  )
  figures = json.loads(capsys.readouterr().out.splitlines()[-1])
  saved = json.loads((tmp_path / 'token_transition.json').read_text())
  assert saved == figures
  of_size = figures['token_transition']['size_4']
  plain, ssa = (of_size[name]['excess_loss'] for name in ('plain', 'ssa'))
  # All tokens as likely: log(8) above nothing, less the floor.
  untrained = np.log(8) - np.mean(np.log(token_transition.SUCCESSORS))
  assert 0 < plain < untrained and 0 < ssa < untrained
  low, high = of_size['ssa - plain']['excess_loss']
  assert (low + high) / 2 == pytest.approx(ssa - plain)
  values = of_size['per_seed']['ssa']['excess_loss']
  assert len(values) == 3 and np.mean(values) == pytest.approx(ssa)
  gaps = np.subtract(values, of_size['per_seed']['plain']['excess_loss'])
  # The 97.5th percentile of t with two degrees of freedom.
  half = 4.302653 * gaps.std(ddof=1) / 3**0.5
  assert high - low == pytest.approx(2 * half, rel=1e-5)


def test_a_wrong_number_is_named():
  with pytest.raises(UserError, match='--seeds=0: expected 1 or more'):
    token_transition.main(['--seeds=0'])
