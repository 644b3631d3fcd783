import hypothesis
import hypothesis.strategies as st

from tests.tasks import examples


@hypothesis.settings(deadline=None, max_examples=12)
@hypothesis.given(
  split=st.sampled_from(['train', 'validation', 'test']),
  length=st.integers(1, 60),
  scratchpad=st.booleans(),
  seed=st.integers(0, 2**31),
)
def test_targets_are_the_parities(split, length, scratchpad, seed):
  for inputs, targets in examples.words(
    'parity', split, seed=seed, length=length, scratchpad=scratchpad
  ):
    *bits, query = inputs
    assert query == '=' and len(bits) == length and set(bits) <= {'0', '1'}
    prefixes = [bits[: i + 1].count('1') for i in range(length)]
    parities = ['odd' if ones % 2 else 'even' for ones in prefixes]
    answers = [{'0': 'even', '1': 'odd'}[word] for word in targets]
    assert answers == (parities if scratchpad else parities[-1:])


def test_the_scratchpad_changes_the_targets_only():
  steps = examples.words('parity', count=20, scratchpad=True)
  answers = examples.words('parity', count=20, scratchpad=False)
  for (inputs, targets), (same, answer) in zip(steps, answers, strict=True):
    assert inputs == same and targets[-1:] == answer
