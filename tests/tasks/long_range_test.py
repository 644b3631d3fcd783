"""The answers of the tasks in RULER's manner are right."""

import collections

import hypothesis
import hypothesis.strategies as st
import pytest
import seqio

from selective_t5x.tasks import needle_grid
from tests.tasks import examples

SPLITS = st.sampled_from(['train', 'validation', 'test'])
settings = hypothesis.settings(deadline=None, max_examples=8)


@settings
@hypothesis.given(
  split=SPLITS,
  num_letters=st.integers(2, 9),
  share=st.floats(0.1, 1),
  num_values=st.integers(2, 20),
  seed=st.integers(0, 2**31),
)
def test_multi_key_asks_for_one_of_distinct_keys(
  split, num_letters, share, num_values, seed
):
  num_needles = max(1, int(share * num_letters**2))
  for inputs, targets in examples.words(
    'multi_key',
    split,
    seed=seed,
    num_needles=num_needles,
    num_letters=num_letters,
    num_values=num_values,
  ):
    assert len(inputs) == 3 * num_needles + 2
    needles = {
      tuple(inputs[i : i + 2]): inputs[i + 2]
      for i in range(0, 3 * num_needles, 3)
    }
    assert len(needles) == num_needles
    assert all(0 <= int(value) < num_values for value in needles.values())
    assert targets == [needles[tuple(inputs[-2:])]]


@settings
@hypothesis.given(
  split=SPLITS,
  num_chains=st.integers(1, 4),
  num_hops=st.integers(0, 4),
  num_filler=st.integers(0, 40),
  more=st.integers(0, 6),
  seed=st.integers(0, 2**31),
)
def test_variable_tracking_follows_a_chain(
  split, num_chains, num_hops, num_filler, more, seed
):
  statements = num_chains * (num_hops + 1)
  for inputs, targets in examples.words(
    'variable_tracking',
    split,
    seed=seed,
    num_chains=num_chains,
    num_hops=num_hops,
    num_filler=num_filler,
    num_variables=statements + more,
    num_values=num_chains + more,
  ):
    assert len(inputs) == num_filler + 2 * statements + 1
    *tokens, query = inputs
    value, count = {}, 0
    while tokens:
      token = tokens.pop(0)
      if token[0] != '.':
        # The source is a value, or a variable that has one already.
        source = tokens.pop(0)
        assert token not in value
        value[token] = value[source] if source[0].isalpha() else source
        count += 1
    assert count == statements
    assert set(collections.Counter(value.values()).values()) == {num_hops + 1}
    assert targets == [v for v in value if value[v] == query]


def test_chains_are_interleaved_and_any_is_asked_for():
  orders, asked = collections.Counter(), collections.Counter()
  for inputs, targets in examples.words(
    'variable_tracking', count=400, num_filler=0, num_hops=1
  ):
    mine = [inputs[i] in targets for i in range(0, 8, 2)]
    orders[tuple(mine)] += 1
    asked[mine[0]] += 1
  assert len(orders) == 6 and min(orders.values()) > 35
  assert min(asked.values()) > 150


@settings
@hypothesis.given(
  split=SPLITS,
  num_symbols=st.integers(2, 30),
  share=st.floats(0.05, 0.9),
  rare=st.integers(0, 4),
  more=st.integers(1, 4),
  seed=st.integers(0, 2**31),
)
def test_frequent_words_are_those_with_the_most_occurrences(
  split, num_symbols, share, rare, more, seed
):
  num_frequent = max(1, int(share * (num_symbols - 1)))
  for inputs, targets in examples.words(
    'frequent_words',
    split,
    seed=seed,
    num_symbols=num_symbols,
    num_frequent=num_frequent,
    frequent=rare + more,
    rare=rare,
  ):
    *text, question = inputs
    assert question == ':'
    counts = collections.Counter(text)
    assert sorted(counts.values()) == sorted(
      [rare + more] * num_frequent
      + [rare] * (num_symbols - num_frequent) * (rare > 0)
    )
    wanted = [word for word in dict.fromkeys(text) if counts[word] > rare]
    assert targets == wanted


@pytest.mark.parametrize('length', needle_grid.LENGTHS)
@pytest.mark.parametrize('depth', [0, 50, 100])
def test_the_queried_needle_lies_at_its_depth(length, depth):
  ranks = collections.Counter()
  for inputs, targets in examples.words(
    f'needle_l{length}_d{depth}', 'validation', count=60, num_filler=40
  ):
    filler = 40 * length // 100
    *tokens, query = inputs
    assert sum(token[0] == '.' for token in tokens) == filler
    assert len(tokens) == filler + 8
    at = tokens.index(query)
    assert targets == [tokens[at + 1]]
    before = sum(token[0] == '.' for token in tokens[:at])
    assert before == filler * depth // 100
    ranks[sum(token.isalpha() for token in tokens[:at])] += 1
  # Other needles lie anywhere, on both sides where there is room.
  assert (len(ranks) > 1) or depth in (0, 100)


def test_the_grid_has_every_cell_and_its_own_examples():
  grid = seqio.get_mixture_or_task('needle_grid')
  names = {task.name for task in grid.tasks}
  assert names == {
    f'needle_l{length}_d{depth}'
    for length in needle_grid.LENGTHS
    for depth in needle_grid.DEPTHS
  }
  lengths = seqio.get_mixture_or_task('needle_lengths')
  assert {task.name for task in lengths.tasks} == {
    f'needle_l{length}' for length in needle_grid.LENGTHS
  }
  streams = [
    stream
    for task in (*grid.tasks, *lengths.tasks)
    for stream in task.source._streams.values()
  ]
  assert len(set(streams)) == len(streams) and min(streams) > 4
