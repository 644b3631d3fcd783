"""Requests become tokens as lm-evaluation-harness has them."""

import hypothesis
import hypothesis.strategies as st
import pytest

from selective_t5x.lm_eval import requests


def pieces(text):
  """Joins a space with the letter after it, as most vocabularies do."""
  ids = []
  for i, letter in enumerate(text):
    if letter == ' ':
      if i + 1 == len(text) or text[i + 1] == ' ':
        ids.append(2)
    elif i and text[i - 1] == ' ':
      ids.append(100 + ord(letter))
    else:
      ids.append(ord(letter))
  return ids


@pytest.mark.parametrize(
  ('context', 'continuation', 'expected'),
  [
    ('a b', ' c', ('a b', ' c')),
    ('a b ', 'c', ('a b', ' c')),
    ('', 'c', ('', 'c')),
    ('', '', ('', '')),
    ('   ', 'c', ('', '   c')),
    ('a', '', ('a', '')),
  ],
)
@pytest.mark.parametrize('together', [True, False])
def test_spaces_at_the_end_belong_to_the_continuation(
  context, continuation, expected, together
):
  before, scored = requests.split_pair(
    pieces, context, continuation, together=together
  )
  assert before == tuple(pieces(expected[0]))
  assert scored == tuple(pieces(expected[1]))


def test_a_token_of_both_counts_to_the_context():
  def pairs(text):  # Two letters a token.
    return [sum(map(ord, text[i : i + 2])) for i in range(0, len(text), 2)]

  before, scored = requests.split_pair(pairs, 'abc', 'def', together=True)
  assert before + scored == tuple(pairs('abcdef'))
  assert scored == tuple(pairs('ef'))


@hypothesis.given(st.integers(0, 60), st.integers(2, 12))
def test_windows_score_each_token_once_with_as_much_context_as_fits(
  count, length
):
  tokens = tuple(range(count))
  windows = requests.windows(tokens, length)
  assert sum((scored for _, scored in windows), ()) == tokens
  for i, (context, scored) in enumerate(windows):
    row = context + scored
    assert row == tuple(range(row[0], row[0] + len(row)))
    assert len(row) == min(length, count)
    assert scored and bool(context) == (i > 0)


def test_windows_are_the_harness_s():
  utils = pytest.importorskip('lm_eval.utils')
  for count in range(30):
    theirs = utils.get_rolling_token_windows(list(range(count)), -1, 7, 1)
    scored = [tuple(pair[1]) for pair in theirs]
    # Theirs have no start token besides the context, so a row has one more.
    assert scored[:1] == [s for _, s in requests.windows(range(count), 7)[:1]]
    assert sum(scored, ()) == tuple(range(count))


@pytest.mark.parametrize(
  ('stops', 'expected'),
  [((), 'a b\nc'), (('\n',), 'a b'), (('c', ' '), 'a'), (('', 'x'), 'a b\nc')],
)
def test_a_text_ends_before_its_first_stop(stops, expected):
  assert requests.cut_at('a b\nc', stops) == expected
