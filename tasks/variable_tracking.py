"""Variable tracking: follow a value through a chain of assignments.

    inputs:  .2 c 7 .0 a 4 d c .1 b a .2 7      targets:  c d

`c 7` gives c the value 7, `d c` gives d what c has. The answer are all
variables that have the queried value, in the order of their assignments: each
step needs the one before it, so a key must stay as long as its chain goes on.
Other chains and filler lie between. A guess of a token is right with
probability 1 / num_variables. Source: after the variable tracking of RULER,
arXiv 2404.06654, section 3. Differs from it: symbols in place of sentences.

Task: variable_tracking. Splits train, validation, test.
"""

import dataclasses

import gin
import tensorflow as tf

from selective_t5x.tasks import synthetic


@gin.configurable(module='selective_t5x.tasks.variable_tracking')
@dataclasses.dataclass(frozen=True)
class Difficulty(synthetic.Difficulty):
  """Difficulty of the task; bound in gin, read when a data set is built.

      from selective_t5x.tasks import variable_tracking
      variable_tracking.Difficulty.num_filler = 200
      TASK_FEATURE_LENGTHS = {'inputs': 217, 'targets': 4}

  Attributes:
    num_chains: chains of assignments, each with a value of its own.
    num_hops: assignments of a variable to a variable in each chain; targets are
      one longer.
    num_filler: filler tokens; inputs have two more for each assignment, and the
      query.
    num_variables: distinct variables, at least one for each assignment.
    num_values: distinct values, at least num_chains.
    num_filler_words: distinct filler tokens.
  """

  num_chains: int = 2
  num_hops: int = 3
  num_filler: int = 24
  num_variables: int = 12
  num_values: int = 10
  num_filler_words: int = 16

  def __post_init__(self):
    """Refuses numbers that leave nothing to follow."""
    self.check(num_chains=1, num_hops=0, num_filler=0)
    self.check(num_variables=1, num_values=1, num_filler_words=1)
    if self.num_variables < self.num_assignments:
      self.refuse(
        'num_variables',
        f'at least num_chains * (num_hops + 1), {self.num_assignments}',
      )
    if self.num_values < self.num_chains:
      self.refuse('num_values', f'at least num_chains, {self.num_chains}')

  @property
  def num_assignments(self) -> int:
    """The assignments of all chains."""
    return self.num_chains * (self.num_hops + 1)

  @property
  def words(self) -> list[str]:
    """The variables a, ..., the values 0, ... and the filler .0, ..."""
    return [
      *synthetic.letters(self.num_variables),
      *map(str, range(self.num_values)),
      *(f'.{i}' for i in range(self.num_filler_words)),
    ]


def _example(seed, difficulty):
  """Makes an example: inputs i32[filler + 2 n + 1], targets i32[hops + 1]."""
  d = difficulty
  n, chain_length = d.num_assignments, d.num_hops + 1
  seeds = synthetic.split_seed(seed, 6)
  variables = synthetic.permutation(seeds[0], d.num_variables)[:n]
  variables = tf.reshape(variables, [d.num_chains, chain_length])
  values = synthetic.permutation(seeds[1], d.num_values)[: d.num_chains]
  values += d.num_variables
  sources = tf.concat([values[:, None], variables[:, :-1]], axis=1)

  # Which chain each assignment of the text continues, and its step of it.
  chain = synthetic.permutation(seeds[2], n) // chain_length
  counts = tf.cumsum(tf.one_hot(chain, d.num_chains, dtype=tf.int32), axis=0)
  step = tf.gather(counts, chain, axis=1, batch_dims=1) - 1
  where = tf.stack([chain, step], axis=1)
  pairs = tf.stack(
    [tf.gather_nd(variables, where), tf.gather_nd(sources, where)], axis=1
  )

  tokens = synthetic.uniform(
    seeds[3], [d.num_filler + 2 * n], d.num_filler_words
  )
  tokens += d.num_variables + d.num_values
  # An assignment occupies one slot, and each one before it adds a token.
  slots = synthetic.permutation(seeds[4], d.num_filler + n)
  starts = tf.sort(slots[:n]) + tf.range(n)
  places = tf.stack([starts, starts + 1], axis=1)
  tokens = tf.tensor_scatter_nd_update(tokens, places[..., None], pairs)
  queried = synthetic.uniform(seeds[5], [], d.num_chains)
  return tf.concat([tokens, values[queried][None]], axis=0), variables[queried]


synthetic.register('variable_tracking', Difficulty, _example)
