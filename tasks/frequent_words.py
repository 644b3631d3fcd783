"""Frequent words: name the symbols that occur more often than the others.

    inputs:  c a d c b c a e d a c a b d e :      targets:  c a

The answer needs the counts of all symbols, so no single key is enough, and
every occurrence adds a little. The frequent symbols are named in the order in
which they first occur. A guess of a token is right with probability
1 / num_symbols. Source: after the aggregation tasks of RULER, arXiv 2404.06654,
section 3. Differs from it: the counts are fixed (there frequent words follow a
power law, or common ones are a given number).

Task: frequent_words. Splits train, validation, test.
"""

import dataclasses

import gin
import tensorflow as tf

from selective_t5x.tasks import synthetic


@gin.configurable(module='selective_t5x.tasks.frequent_words')
@dataclasses.dataclass(frozen=True)
class Difficulty(synthetic.Difficulty):
  """Difficulty of the task; bound in gin, read when a data set is built.

      from selective_t5x.tasks import frequent_words
      frequent_words.Difficulty.rare = 8
      frequent_words.Difficulty.frequent = 16
      TASK_FEATURE_LENGTHS = {'inputs': 105, 'targets': 3}

  Attributes:
    num_symbols: distinct symbols.
    num_frequent: how many of them are frequent, fewer than num_symbols.
    frequent: occurrences of each frequent symbol, more than `rare`.
    rare: occurrences of each other symbol.
  """

  num_symbols: int = 10
  num_frequent: int = 3
  frequent: int = 6
  rare: int = 2

  def __post_init__(self):
    """Refuses numbers that leave nothing to count."""
    self.check(num_symbols=2, num_frequent=1, frequent=1, rare=0)
    if self.num_frequent >= self.num_symbols:
      self.refuse('num_frequent', f'less than num_symbols, {self.num_symbols}')
    if self.frequent <= self.rare:
      self.refuse('frequent', f'more than rare, {self.rare}')

  @property
  def words(self) -> list[str]:
    """The symbols a, b, ... and the question :."""
    return [*synthetic.letters(self.num_symbols), ':']


def _example(seed, difficulty):
  """Makes an example: inputs i32[n + 1], targets i32[num_frequent]."""
  d = difficulty
  seeds = synthetic.split_seed(seed, 2)
  symbols = synthetic.permutation(seeds[0], d.num_symbols)
  frequent, rare = symbols[: d.num_frequent], symbols[d.num_frequent :]
  text = tf.concat(
    [tf.repeat(frequent, d.frequent), tf.repeat(rare, d.rare)], axis=0
  )
  length = d.num_frequent * d.frequent
  length += (d.num_symbols - d.num_frequent) * d.rare
  text = tf.gather(text, synthetic.permutation(seeds[1], length))
  first = tf.argmax(
    tf.cast(text == frequent[:, None], tf.int32), axis=1, output_type=tf.int32
  )
  text = tf.concat([text, [d.num_symbols]], axis=0)
  return text, tf.gather(frequent, tf.argsort(first))


synthetic.register('frequent_words', Difficulty, _example)
