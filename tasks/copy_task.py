"""Copying: repeat a list of random symbols.

    inputs:  c a a f :      targets:  c a a f

Attention must look back to one position, a different one at every step, and may
forget nothing before the end: copying is the paper's example of a task that
needs the whole context (arXiv 2410.02703, section 1), so selection must mask
nothing. A guess is right with probability 1 / num_symbols for a token, and
1 / num_symbols ** length for the whole list.

Task: copy. Splits train, validation, test.
"""

import dataclasses

import gin
import tensorflow as tf

from selective_t5x.tasks import synthetic


@gin.configurable(module='selective_t5x.tasks.copy_task')
@dataclasses.dataclass(frozen=True)
class Difficulty(synthetic.Difficulty):
  """Difficulty of the task; bound in gin, read when a data set is built.

      from selective_t5x.tasks import copy_task
      copy_task.Difficulty.length = 64
      TASK_FEATURE_LENGTHS = {'inputs': 65, 'targets': 64}

  Attributes:
    length: symbols to copy; inputs are one longer.
    num_symbols: distinct symbols, at least 2.
  """

  length: int = 24
  num_symbols: int = 16

  def __post_init__(self):
    """Refuses numbers that leave nothing to copy."""
    self.check(length=1, num_symbols=2)

  @property
  def words(self) -> list[str]:
    """The symbols a, b, ... and the separator."""
    return [*synthetic.letters(self.num_symbols), ':']


def _example(seed, difficulty):
  """Makes an example: inputs i32[n + 1], targets i32[n]."""
  symbols = synthetic.uniform(seed, [difficulty.length], difficulty.num_symbols)
  separator = difficulty.num_symbols
  return tf.concat([symbols, [separator]], axis=0), symbols


synthetic.register('copy', Difficulty, _example)
