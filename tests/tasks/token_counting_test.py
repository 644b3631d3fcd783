import collections

import hypothesis
import hypothesis.strategies as st

from tests.tasks import examples


@hypothesis.settings(deadline=None, max_examples=12)
@hypothesis.given(
  split=st.sampled_from(['train', 'validation', 'test']),
  max_count=st.integers(1, 20),
  more_length=st.integers(0, 40),
  num_symbols=st.integers(2, 60),
  seed=st.integers(0, 2**31),
)
def test_the_answer_is_the_number_of_occurrences(
  split, max_count, more_length, num_symbols, seed
):
  for inputs, targets in examples.words(
    'token_counting',
    split,
    seed=seed,
    length=max_count + more_length,
    max_count=max_count,
    num_symbols=num_symbols,
  ):
    *symbols, query = inputs
    assert len(symbols) == max_count + more_length
    assert targets == [str(symbols.count(query))]
    assert int(targets[0]) <= max_count


def test_the_queried_symbol_may_stand_anywhere():
  places, queries = collections.Counter(), collections.Counter()
  for inputs, _ in examples.words('token_counting', count=2000, length=9):
    *symbols, query = inputs
    queries[query] += 1
    places.update(i for i, symbol in enumerate(symbols) if symbol == query)
  # 0 to 9 of 9 places, 4.5 on average: about 1,000 each; 250 a query.
  assert len(places) == 9 and min(places.values()) > 900
  assert len(queries) == 8 and min(queries.values()) > 180
