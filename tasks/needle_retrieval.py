"""Needle retrieval: find the value of a key in a long filler.

    inputs:  .3 .0 b 7 .1 .1 .2 e 4 .0 b      targets:  7

Attention must find one key in much irrelevant text: each of the num_filler
filler tokens takes its share of the softmax. No key occurs twice, so nothing
becomes stale, in contrast to variable assignment. A guess is right with
probability 1 / num_values; a model that finds needles but cannot tell their
keys apart picks one of num_needles.

Task: needle_retrieval. Splits train, validation, test.
"""

import dataclasses

import gin
import tensorflow as tf

from selective_t5x.tasks import synthetic


@gin.configurable(module='selective_t5x.tasks.needle_retrieval')
@dataclasses.dataclass(frozen=True)
class Difficulty(synthetic.Difficulty):
  """Difficulty of the task; bound in gin, read when a data set is built.

      from selective_t5x.tasks import needle_retrieval
      needle_retrieval.Difficulty.num_filler = 250
      TASK_FEATURE_LENGTHS = {'inputs': 259, 'targets': 1}

  Attributes:
    num_filler: filler tokens; inputs are longer by two a needle and the query.
    num_needles: pairs of a key and its value, at random positions.
    num_keys: distinct keys, at least num_needles.
    num_values: distinct values, at least 2.
    num_filler_words: distinct filler tokens.
  """

  num_filler: int = 48
  num_needles: int = 4
  num_keys: int = 8
  num_values: int = 10
  num_filler_words: int = 16

  def __post_init__(self):
    """Refuses numbers that leave nothing to find."""
    self.check(num_filler=0, num_needles=1, num_keys=1)
    self.check(num_values=2, num_filler_words=1)
    if self.num_keys < self.num_needles:
      self.refuse('num_keys', f'at least num_needles, {self.num_needles}')

  @property
  def words(self) -> list[str]:
    """The keys a, b, ..., the values 0, 1, ... and the filler .0, .1, ..."""
    return [
      *synthetic.letters(self.num_keys),
      *map(str, range(self.num_values)),
      *(f'.{i}' for i in range(self.num_filler_words)),
    ]


def example(seed, difficulty, *, length=100, depth=None):
  """Makes an example: inputs i32[filler + 2 needles + 1], targets i32[1].

  Args:
    seed: i64[2].
    difficulty: of the task.
    length: the percentage of num_filler that the text has, rounded down.
    depth: how much of the filler lies before the queried needle, in percent;
      None for any.
  """
  d = difficulty
  num_filler = d.num_filler * length // 100
  seeds = synthetic.split_seed(seed, 5)
  keys = synthetic.permutation(seeds[0], d.num_keys)[: d.num_needles]
  values = synthetic.uniform(seeds[1], [d.num_needles], d.num_values)
  values += d.num_keys
  filler = synthetic.uniform(
    seeds[2], [num_filler + 2 * d.num_needles], d.num_filler_words
  )
  filler += d.num_keys + d.num_values
  queried = synthetic.uniform(seeds[4], [1], d.num_needles)

  if depth is None:
    slots = synthetic.permutation(seeds[3], num_filler + d.num_needles)
    slots = tf.sort(slots[: d.num_needles])
  else:
    # Filler before each needle; needles of equal depth come in any order.
    before = synthetic.uniform(seeds[3], [d.num_needles], num_filler + 1)
    wanted = num_filler * depth // 100
    before = tf.where(tf.range(d.num_needles) == queried, wanted, before)
    order = tf.argsort(before, stable=True)
    keys, values = tf.gather(keys, order), tf.gather(values, order)
    rank = tf.cast(order == queried, tf.int32)
    queried = tf.argmax(rank, output_type=tf.int32)[None]
    slots = tf.gather(before, order) + tf.range(d.num_needles)
  # A needle occupies one slot, and each needle before it adds a token.
  starts = slots + tf.range(d.num_needles)
  tokens = tf.tensor_scatter_nd_update(filler, starts[:, None], keys)
  tokens = tf.tensor_scatter_nd_update(tokens, starts[:, None] + 1, values)
  return (
    tf.concat([tokens, tf.gather(keys, queried)], axis=0),
    tf.gather(values, queried),
  )


synthetic.register('needle_retrieval', Difficulty, example)
