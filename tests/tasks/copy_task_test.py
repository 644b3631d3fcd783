import hypothesis
import hypothesis.strategies as st

from tests.tasks import examples


@hypothesis.settings(deadline=None, max_examples=15)
@hypothesis.given(
  split=st.sampled_from(['train', 'validation', 'test']),
  length=st.integers(1, 60),
  num_symbols=st.integers(2, 60),
  seed=st.integers(0, 2**31),
)
def test_targets_are_the_symbols_before_the_separator(
  split, length, num_symbols, seed
):
  for inputs, targets in examples.words(
    'copy', split, seed=seed, length=length, num_symbols=num_symbols
  ):
    assert inputs == [*targets, ':']
    assert len(targets) == length and ':' not in targets
    assert len(set(targets)) <= num_symbols
