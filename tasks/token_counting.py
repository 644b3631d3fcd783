"""Token counting: how often a symbol occurs.

    inputs:  b a c a b a d a      targets:  3

The last symbol is the query and does not count. Attention must keep every
occurrence and nothing else. Its weights sum to one, so it computes the share of
the matches, and the rest of the network must turn it into a number. The count
is drawn first, uniformly from 0, ... max_count, then as many positions for the
queried symbol; the others fill the rest. So all answers are equally likely, and
a guess is right with probability 1 / (max_count + 1).

Task: token_counting. Splits train, validation, test.
"""

import dataclasses

import gin
import tensorflow as tf

from selective_t5x.tasks import synthetic


@gin.configurable(module='selective_t5x.tasks.token_counting')
@dataclasses.dataclass(frozen=True)
class Difficulty(synthetic.Difficulty):
  """Difficulty of the task; bound in gin, read when a data set is built.

      from selective_t5x.tasks import token_counting
      token_counting.Difficulty.length = 64
      TASK_FEATURE_LENGTHS = {'inputs': 65, 'targets': 1}

  Attributes:
    length: symbols before the query; inputs are one longer.
    num_symbols: distinct symbols, at least 2.
    max_count: the largest answer, at most `length`.
  """

  length: int = 32
  num_symbols: int = 8
  max_count: int = 9

  def __post_init__(self):
    """Refuses numbers that leave nothing to count."""
    self.check(length=1, num_symbols=2, max_count=1)
    if self.length < self.max_count:
      self.refuse('length', f'at least max_count, {self.max_count}')

  @property
  def words(self) -> list[str]:
    """The symbols a, b, ... and the counts 0, 1, ..."""
    return [
      *synthetic.letters(self.num_symbols),
      *map(str, range(self.max_count + 1)),
    ]


def _example(seed, difficulty):
  """Makes an example: inputs i32[n + 1], targets i32[1]."""
  n, num_symbols = difficulty.length, difficulty.num_symbols
  seeds = synthetic.split_seed(seed, 4)
  query = synthetic.uniform(seeds[0], [1], num_symbols)
  count = synthetic.uniform(seeds[1], [1], difficulty.max_count + 1)
  others = synthetic.uniform(seeds[2], [n], num_symbols - 1)
  others += tf.cast(others >= query, tf.int32)  # skips over the query
  # Exactly `count` entries of a permutation are less than `count`.
  is_query = synthetic.permutation(seeds[3], n) < count
  symbols = tf.where(is_query, query, others)
  return tf.concat([symbols, query], axis=0), num_symbols + count


synthetic.register('token_counting', Difficulty, _example)
