"""What selective models forget, measured on rows whose F is known."""

import dataclasses

import numpy as np
import pytest

from selective_t5x.report import forgetting, plots
from tests.report.masking_viewer_test import masked


def with_scores(scores, tokens=None):
  """A row whose S is given, f32[L, N - 1, N]."""
  f = np.concatenate(
    [np.zeros_like(scores[:, :1]), np.cumsum(scores, axis=1)], axis=1
  )
  row = masked(length=f.shape[1], layers=f.shape[0], tokens=tokens)
  return dataclasses.replace(row, masking=f)


def test_scores_are_what_f_sums():
  rng = np.random.default_rng(0)
  s = np.tril(rng.exponential(size=(2, 6, 7)), k=-1)
  got = forgetting.scores(with_scores(s).masking)
  np.testing.assert_allclose(got, s, atol=1e-12)


def test_the_rank_is_that_of_a_known_matrix():
  rng = np.random.default_rng(0)
  a, b = rng.exponential(size=(2, 11, 2)), rng.exponential(size=(2, 12, 2))
  a[1] = 0  # The second layer masks nothing.
  two = np.einsum('lqr,lkr->lqk', a, b)
  first, nothing = forgetting.ranks([with_scores(two)] * 2)
  assert 1 <= first['rank_99'] <= 2 and 1 <= first['stable_rank'] <= 2
  assert first['spectrum'][0] == 1 and first['spectrum'][2] < 1e-9
  assert first['full'] == 10
  assert nothing['rank_99'] == 0 and not any(nothing['spectrum'])
  # As many as there are, where all are as large.
  eye = np.eye(11, 12)[None]
  (whole,) = forgetting.ranks([with_scores(eye)])
  assert whole['rank_99'] == 11 and whole['stable_rank'] == pytest.approx(11)


def test_kinds_are_counted_by_what_is_left_later():
  tokens = [
    '<start>',
    ' The',
    ' cat',
    's',
    '.',
    ' The',
    ' 7',
    ' ran',
    ',',
    ' x',
  ]
  scores = np.zeros((2, 9, 10))
  scores[0, 4, 1] = 1.5  # The query after the full stop masks the first word.
  scores[1, 5, 4] = 0.5  # This is below TAU.
  got = forgetting.kinds([with_scores(scores, tokens)], later=4)
  assert got == {
    'new word': (2, [0.5, 1.0]),
    'rest of a word': (1, [1.0, 1.0]),
    'end of a sentence': (1, [1.0, 1.0]),
    'repeated word': (1, [1.0, 1.0]),
  }
  # Asked one token earlier, nothing is masked yet.
  assert forgetting.kinds([with_scores(scores, tokens)], later=3)['new word'][
    1
  ] == [1.0, 1.0]
  assert forgetting.kinds([with_scores(scores, tokens)], later=20) == {}


def test_what_is_gone_is_a_share_of_earlier_keys():
  scores = np.zeros((2, 3, 4))
  scores[0, 0, 0] = 1.0  # Three queries lose the first key.
  scores[1, 1, 1] = 2.0  # Two of the last queries, of which one sees it last.
  row = with_scores(scores)
  got = forgetting.gone([row])
  # Six pairs of a query and an earlier key.
  assert got['masked'] == pytest.approx([3 / 6, 2 / 6])
  assert got['dead'] == pytest.approx([0.0, 0.875])
  silent = dataclasses.replace(row, read=None)
  assert forgetting.gone([silent])['dead'] == []


def test_pictures_are_drawn_of_every_layer():
  rows = [masked(length=40, layers=2)]
  models = {'a': forgetting.ranks(rows), 'b': forgetting.ranks(rows)}
  figure = forgetting.figure_of_ranks(models)
  assert len(figure.axes[0].lines) == 4
  steps = {5: forgetting.gone(rows), 10: forgetting.gone(rows)}
  figure = forgetting.figure_of_training({'a': steps})
  assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [
    [5, 10]
  ] * 2
  kinds = forgetting.kinds(rows)
  figure = forgetting.figure_of_kinds({'a': kinds, 'b': kinds})
  assert plots.png(figure).startswith(b'\x89PNG')
  shown = {text.get_text() for text in figure.axes[0].texts}
  assert shown == {
    f'{share:.2f}' for _, shares in kinds.values() for share in shares
  }
