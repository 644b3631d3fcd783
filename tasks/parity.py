"""Parity: whether the number of ones is odd.

    scratchpad      inputs             targets
    True            1 0 1 1 =          1 1 0 1
    'interleaved'   1 1 0 1 1 0 1      1
    False           1 0 1 1 =          1

The three formats need memories of different sizes for the same question.

- True, the default: the targets are the parities of all prefixes; the last one
  is the answer. Each step needs one bit and the previous step, so every bit
  must be kept until its own step.
- 'interleaved': the running parity follows every bit. The answer needs only the
  last bit and the parity before it; all other tokens may be dropped. This is
  the extreme of little memory, and copying (tasks/copy_task.py) that of much
  memory: arXiv 2410.02703 has both extremes in appendix A2. We have not seen
  its format; this one is ours.
- False: one step must read all bits, which is known to be hard for softmax
  attention (Hahn, arXiv 1906.06755).

A guess is right with probability 1 / 2 for a token, and 1 / 2 ** length for a
whole scratchpad.

Task: parity. Splits train, validation, test.
"""

import dataclasses

import gin
import tensorflow as tf

from selective_t5x.tasks import synthetic

INTERLEAVED = 'interleaved'
_QUERY = 2  # after the bits 0 and 1


@gin.configurable(module='selective_t5x.tasks.parity')
@dataclasses.dataclass(frozen=True)
class Difficulty(synthetic.Difficulty):
  """Difficulty of the task; bound in gin, read when a data set is built.

      from selective_t5x.tasks import parity
      parity.Difficulty.length = 8
      parity.Difficulty.scratchpad = False
      TASK_FEATURE_LENGTHS = {'inputs': 9, 'targets': 1}

  Attributes:
    length: bits. Inputs are one longer; the interleaved ones have
      2 * length - 1 tokens.
    scratchpad: where the parities of the prefixes are: True: in the targets,
      `length` tokens; 'interleaved': in the inputs; False: nowhere. In the last
      two cases the targets are one token, the parity of all bits.
  """

  length: int = 16
  scratchpad: bool | str = True

  def __post_init__(self):
    """Refuses settings that leave nothing to count."""
    self.check(length=1)
    if not isinstance(self.scratchpad, bool) and self.scratchpad != INTERLEAVED:
      self.refuse('scratchpad', f'True or False or {INTERLEAVED!r}')

  @property
  def words(self) -> list[str]:
    """The bits and the query."""
    return ['0', '1', '=']


def _example(seed, difficulty):
  """Makes inputs, i32[n + 1] or [2 n - 1], and targets, i32[n] or [1]."""
  bits = synthetic.uniform(seed, [difficulty.length], 2)
  parities = tf.cumsum(bits) % 2
  if difficulty.scratchpad == INTERLEAVED:
    pairs = tf.reshape(tf.stack([bits, parities], axis=1), [-1])
    return pairs[:-1], pairs[-1:]
  targets = parities if difficulty.scratchpad else parities[-1:]
  return tf.concat([bits, [_QUERY]], axis=0), targets


synthetic.register('parity', Difficulty, _example)
