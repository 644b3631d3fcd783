"""Multi-key retrieval: find one key among many that look like it.

    inputs:  c f 7 a f 2 c b 4 b b 1 c f      targets:  7

All of the text are needles: a key of two letters and its value. Keys share
letters, so one letter alone does not tell them apart, and there is no filler
that could be dropped. No key occurs twice. A guess is right with probability
1 / num_values. Source: after the multi-key needles of RULER, arXiv 2404.06654,
section 3. Differs from it: two symbols are a key, one is a value.

Task: multi_key. Splits train, validation, test.
"""

import dataclasses

import gin
import tensorflow as tf

from selective_t5x.tasks import synthetic


@gin.configurable(module='selective_t5x.tasks.multi_key')
@dataclasses.dataclass(frozen=True)
class Difficulty(synthetic.Difficulty):
  """Difficulty of the task; bound in gin, read when a data set is built.

      from selective_t5x.tasks import multi_key
      multi_key.Difficulty.num_needles = 64
      TASK_FEATURE_LENGTHS = {'inputs': 194, 'targets': 1}

  Attributes:
    num_needles: keys with a value; inputs are three times as long, plus two.
    num_letters: distinct letters of keys; their square is at least num_needles.
    num_values: distinct values, at least 2.
  """

  num_needles: int = 16
  num_letters: int = 8
  num_values: int = 10

  def __post_init__(self):
    """Refuses numbers that leave nothing to find."""
    self.check(num_needles=1, num_letters=2, num_values=2)
    if self.num_letters**2 < self.num_needles:
      self.refuse(
        'num_letters', f'a square of at least num_needles, {self.num_needles}'
      )

  @property
  def words(self) -> list[str]:
    """The letters a, b, ... and the values 0, 1, ..."""
    return [
      *synthetic.letters(self.num_letters),
      *map(str, range(self.num_values)),
    ]


def _example(seed, difficulty):
  """Makes an example: inputs i32[3 needles + 2], targets i32[1]."""
  d = difficulty
  seeds = synthetic.split_seed(seed, 3)
  keys = synthetic.permutation(seeds[0], d.num_letters**2)[: d.num_needles]
  letters = tf.stack([keys // d.num_letters, keys % d.num_letters], axis=1)
  values = synthetic.uniform(seeds[1], [d.num_needles], d.num_values)
  values += d.num_letters
  needles = tf.concat([letters, values[:, None]], axis=1)
  queried = synthetic.uniform(seeds[2], [], d.num_needles)
  return (
    tf.concat([tf.reshape(needles, [-1]), letters[queried]], axis=0),
    values[queried][None],
  )


synthetic.register('multi_key', Difficulty, _example)
