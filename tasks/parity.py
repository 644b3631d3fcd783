"""Parity: is the number of ones odd?

    inputs:  1 0 1 1 =      targets:  1 1 0 1     (scratchpad, the default)
                            targets:  1           (without)

The answer depends on every bit, each as much as any other, so no token may be
dropped before it was read. With the scratchpad the targets are the parities of
all prefixes, of which the last one is the answer: each step then needs one bit
and the step before. Without it one step must read all bits, which is known to
be hard for softmax attention (Hahn, arXiv 1906.06755). Guessing is right once
in 2 for a token, and for a whole scratchpad once in 2 ** length.

Task: parity. Splits train, validation, test.
"""

import dataclasses

import gin
import tensorflow as tf

from selective_t5x.tasks import synthetic

_QUERY = 2  # after the bits 0 and 1


@gin.configurable(module='selective_t5x.tasks.parity')
@dataclasses.dataclass(frozen=True)
class Difficulty(synthetic.Difficulty):
  """How hard the task is; bound in gin, read when a data set is built.

      from selective_t5x.tasks import parity
      parity.Difficulty.length = 8
      parity.Difficulty.scratchpad = False
      TASK_FEATURE_LENGTHS = {'inputs': 9, 'targets': 1}

  Attributes:
    length: bits; inputs are one longer.
    scratchpad: whether targets are the parities of all prefixes, `length`
      tokens, or the one of all bits, one token.
  """

  length: int = 16
  scratchpad: bool = True

  def __post_init__(self):
    """Refuses what leaves nothing to count."""
    self.check(length=1)
    if not isinstance(self.scratchpad, bool):
      self.refuse('scratchpad', 'True or False')

  @property
  def words(self) -> list[str]:
    """The bits and the query."""
    return ['0', '1', '=']


def _example(seed, difficulty):
  """Makes an example: inputs i32[n + 1], targets i32[n] or i32[1]."""
  bits = synthetic.uniform(seed, [difficulty.length], 2)
  parities = tf.cumsum(bits) % 2
  targets = parities if difficulty.scratchpad else parities[-1:]
  return tf.concat([bits, [_QUERY]], axis=0), targets


synthetic.register('parity', Difficulty, _example)
