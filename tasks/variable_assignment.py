"""Variable assignment: the task with which the paper motivates selection.

An example is a list of assignments "variable value" and then a variable; the
answer is its last value:

    inputs:  a 3 b 7 a 5 c 7 b 1 a      targets:  5

Attention must drop every assignment that a later one made stale: selective
attention can do this, and softmax alone finds it hard. Source: arXiv
2410.02703, section 2. A guess is right with probability 1 / num_values.

Two tasks and a mixture that evaluates both, each under its own name:

  variable_assignment: variables and values are uniform, and the query is
    uniform over the variables that were assigned. Splits train, validation,
    test.
  variable_assignment_ood: out of distribution. The queried variable is
    assigned once, at the very beginning; the rest of the list assigns the
    others. Splits validation, test.
  variable_assignment_eval: the mixture of the two.

`targets` is exactly the answer token, so T5X's `accuracy` is exact match.
"""

import dataclasses
import functools

import gin
import seqio
import tensorflow as tf

from selective_t5x.tasks import synthetic


@gin.configurable(module='selective_t5x.tasks.variable_assignment')
@dataclasses.dataclass(frozen=True)
class Difficulty(synthetic.Difficulty):
  """Difficulty of the task; bound in gin, read when a data set is built.

      from selective_t5x.tasks import variable_assignment
      variable_assignment.Difficulty.num_assignments = 64
      TASK_FEATURE_LENGTHS = {'inputs': 129, 'targets': 1}

  Attributes:
    num_assignments: assignments before the query; inputs are twice as long,
      plus one.
    num_variables: distinct variables, at least 2.
    num_values: distinct values, at least 2.
  """

  num_assignments: int = 24
  num_variables: int = 8
  num_values: int = 10

  def __post_init__(self):
    """Refuses numbers that leave nothing to ask."""
    self.check(num_assignments=1, num_variables=2, num_values=2)

  @property
  def words(self) -> list[str]:
    """The variables a, b, ... and the values 0, 1, ..."""
    return [
      *synthetic.letters(self.num_variables),
      *map(str, range(self.num_values)),
    ]


def _example(seed, difficulty, ood):
  """Makes an example: inputs i32[2 n + 1], targets i32[1]."""
  n, v = difficulty.num_assignments, difficulty.num_variables
  seeds = synthetic.split_seed(seed, 3)
  values = v + synthetic.uniform(seeds[0], [n], difficulty.num_values)
  if ood:
    query = synthetic.uniform(seeds[1], [], v)
    others = synthetic.uniform(seeds[2], [n - 1], v - 1)
    others += tf.cast(others >= query, tf.int32)  # skips over the query
    variables = tf.concat([[query], others], axis=0)
  else:
    variables = synthetic.uniform(seeds[1], [n], v)
    ranks = tf.random.stateless_uniform([v], seeds[2], alg='philox')
    assigned = tf.reduce_any(variables[:, None] == tf.range(v), axis=0)
    query = tf.argmax(tf.where(assigned, ranks, -1.0), output_type=tf.int32)
  last = tf.reduce_max(tf.where(variables == query)[:, 0])
  pairs = tf.reshape(tf.stack([variables, values], axis=1), [-1])
  return tf.concat([pairs, [query]], axis=0), values[last][None]


# Published figures depend on the examples of streams 0, 1 and 2.
synthetic.register(
  'variable_assignment',
  Difficulty,
  functools.partial(_example, ood=False),
  streams={'train': 0, 'validation': 1, 'test': 3},
)
synthetic.register(
  'variable_assignment_ood',
  Difficulty,
  functools.partial(_example, ood=True),
  streams={'validation': 2, 'test': 4},
)
seqio.MixtureRegistry.add(
  'variable_assignment_eval',
  ['variable_assignment', 'variable_assignment_ood'],
  default_rate=1,
)
