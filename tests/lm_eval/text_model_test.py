"""A run's checkpoint answers requests, with its own cache or a pruned one."""

import pytest

from selective_t5x.errors import UserError
from selective_t5x.lm_eval import text_model


def ignored(count):
  del count


def test_a_run_is_restored_with_and_without_a_pruned_cache(selective_run):
  context = 'a 3 b 7 a 5 b 1 c 2 d 4 a'
  scores = {}
  for budget in (None, 2):
    with text_model.restored(
      str(selective_run),
      gin_files=[] if budget is None else ['gin/pruning/selective.gin'],
      gin_bindings=[] if budget is None else [f'CACHE_BUDGETS = {budget}'],
      rows=2,
    ) as model:
      pairs = [(context, f' {value}') for value in (3, 5)]
      scores[budget] = model.log_likelihoods(pairs, ignored)
      (text,) = model.continuations([(context, (), 3)], ignored)
    assert all(score < 0 for score, _ in scores[budget])
    assert isinstance(text, str)
  # With two keys a layer, the model sees little of the context.
  assert scores[None] != scores[2]


@pytest.mark.parametrize('rows', [0, 2.0, '8'])
def test_an_invalid_number_of_rows_is_refused(rows):
  with (
    pytest.raises(UserError, match=f'rows = {rows!r}: expected a whole number'),
    text_model.restored('results/none', rows=rows),
  ):
    pass
