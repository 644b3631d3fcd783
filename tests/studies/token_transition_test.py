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


def test_the_last_line_has_both_models_and_training_lowers_the_loss(
  tmp_path, capsys
):
  flags = ['--seeds=2', '--size=4', f'--output_dir={tmp_path}']
  losses = []
  for steps in (1, 60):
    token_transition.main([*flags, f'--steps={steps}'])
    line = capsys.readouterr().out.splitlines()[-1]
    figures = json.loads(line)['token_transition']
    saved = json.loads((tmp_path / 'token_transition.json').read_text())
    assert saved['token_transition'] == figures
    losses.append([figures[n]['excess_loss'] for n in ('plain', 'ssa')])
    low, high = figures['ssa - plain']['excess_loss']
    assert (low + high) / 2 == pytest.approx(losses[-1][1] - losses[-1][0])
  assert np.all(np.array(losses[1]) < losses[0]) and np.min(losses) > 0


def test_a_wrong_number_is_named():
  with pytest.raises(UserError, match='--seeds=0: expected 1 or more'):
    token_transition.main(['--seeds=0'])
