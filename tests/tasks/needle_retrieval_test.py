import collections

import hypothesis
import hypothesis.strategies as st

from tests.tasks import examples


@hypothesis.settings(deadline=None, max_examples=12)
@hypothesis.given(
  split=st.sampled_from(['train', 'validation', 'test']),
  num_filler=st.integers(0, 60),
  num_needles=st.integers(1, 12),
  more_keys=st.integers(0, 30),
  num_values=st.integers(2, 20),
  num_filler_words=st.integers(1, 20),
  seed=st.integers(0, 2**31),
)
def test_the_answer_follows_the_key_in_the_filler(
  split, num_needles, more_keys, seed, **difficulty
):
  for inputs, targets in examples.words(
    'needle_retrieval',
    split,
    seed=seed,
    num_needles=num_needles,
    num_keys=num_needles + more_keys,
    **difficulty,
  ):
    *tokens, query = inputs
    values = {}
    while tokens:
      token = tokens.pop(0)
      if token[0] != '.':
        assert token not in values and token[0].isalpha()
        values[token] = tokens.pop(0)
        assert 0 <= int(values[token]) < difficulty['num_values']
    assert len(values) == num_needles
    assert len(inputs) == difficulty['num_filler'] + 2 * num_needles + 1
    assert targets == [values[query]]


def test_needles_lie_anywhere_and_any_of_them_is_asked_for():
  places, ranks = collections.Counter(), collections.Counter()
  for inputs, _ in examples.words(
    'needle_retrieval', count=1000, num_filler=4, num_needles=2
  ):
    keys = [w for w in inputs[:-1] if w[0].isalpha()]
    starts = [inputs.index(key) for key in keys]
    # The second needle's place among the slots: the first took two tokens.
    places.update([(starts[0], starts[1] - 1)])
    ranks[keys.index(inputs[-1])] += 1
  # Two of six slots: 15 ways, about 67 each; the query: about 500 each.
  assert len(places) == 15 and min(places.values()) > 35
  assert min(ranks[0], ranks[1]) > 420
