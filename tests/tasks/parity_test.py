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


@hypothesis.settings(deadline=None, max_examples=8)
@hypothesis.given(length=st.integers(1, 60), seed=st.integers(0, 2**31))
def test_interleaved_the_answer_needs_the_last_two_tokens(length, seed):
  for inputs, targets in examples.words(
    'parity', seed=seed, length=length, scratchpad='interleaved'
  ):
    assert len(inputs) == 2 * length - 1 and len(targets) == 1
    running = 0
    for bit, parity in zip(inputs[::2], [*inputs[1::2], *targets], strict=True):
      running ^= int(bit)
      assert int(parity) == running
    last = [0, *map(int, inputs)][-2:]
    assert int(targets[0]) == sum(last) % 2


def test_the_scratchpad_changes_no_bit():
  steps, answers, mixed = (
    examples.words('parity', count=20, scratchpad=scratchpad)
    for scratchpad in (True, False, 'interleaved')
  )
  for (inputs, targets), (same, answer), (between, last) in zip(
    steps, answers, mixed, strict=True
  ):
    assert inputs == same and inputs[:-1] == between[::2]
    assert targets[-1:] == answer == last
