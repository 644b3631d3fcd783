"""Variable assignment: the task with which the paper motivates selection.

An example is a list of assignments "variable value" and then a variable; the
answer is the value it was given last:

    inputs:  a 3 b 7 a 5 c 7 b 1 a      targets:  5

Attention must drop every assignment that a later one made stale, which is
what selective attention can do and what softmax alone finds hard. Source:
arXiv 2410.02703, section 2.

Two tasks and a mixture that evaluates both, each under its own name:

  variable_assignment: variables and values are uniform, and the query is
    uniform over the variables that were assigned. Splits train, validation.
  variable_assignment_ood: out of distribution. The queried variable is
    assigned once, at the very beginning; the rest of the list assigns the
    others. Split validation.
  variable_assignment_eval: the mixture of the two.

`targets` is exactly the answer token (no end-of-sequence token), so T5X's
`accuracy` is exact match and the loss falls on the answer only. Examples are
made by stateless random operations from their index, so that the state of the
input pipeline can be saved; nothing is read from a file.
"""

import dataclasses

import gin
import seqio
import tensorflow as tf

from selective_t5x.errors import UserError

# One stream of random numbers for each source and split; see _Assignments.
_STREAMS = {
  ('in', 'train'): 0,
  ('in', 'validation'): 1,
  ('ood', 'validation'): 2,
}
_NUM_EXAMPLES = {'train': 2**40, 'validation': 10_000}


@gin.configurable(module='selective_t5x.tasks.variable_assignment')
@dataclasses.dataclass(frozen=True)
class Difficulty:
  """How hard the task is; bound in gin, read when a data set is built.

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
    for field, least in (
      ('num_assignments', 1),
      ('num_variables', 2),
      ('num_values', 2),
    ):
      value = getattr(self, field)
      if not isinstance(value, int) or value < least:
        raise UserError(
          f'variable_assignment.Difficulty.{field} = {value!r}: expected a '
          f'whole number of at least {least}'
        )

  @property
  def inputs_length(self) -> int:
    """Tokens of `inputs`: the assignments and the query."""
    return 2 * self.num_assignments + 1


class VariableVocabulary(seqio.Vocabulary):
  """One token a variable, one a value; its size follows `Difficulty`.

  Ids: 0 padding, 1 end of sequence, 2 unknown, then the variables a, b, ...
  z, a1, b1, ..., then the values 0, 1, 2, ... Text is words apart by spaces.
  """

  first_variable = 3

  @property
  def first_value(self) -> int:
    """Id of the value 0."""
    return self.first_variable + Difficulty().num_variables

  @property
  def bos_id(self):
    """There is none."""
    return None

  @property
  def eos_id(self) -> int:
    """Reserved for seqio; the task appends none."""
    return 1

  @property
  def unk_id(self) -> int:
    """Stands for every word that is neither a variable nor a value."""
    return 2

  @property
  def _base_vocab_size(self) -> int:
    return len(self._words())

  def _words(self) -> list[str]:
    """Returns the word of each id; padding and end of sequence have none."""
    difficulty = Difficulty()
    letters = 'abcdefghijklmnopqrstuvwxyz'
    variables = [
      letters[i % 26] + (str(i // 26) if i >= 26 else '')
      for i in range(difficulty.num_variables)
    ]
    return ['', '', '?', *variables, *map(str, range(difficulty.num_values))]

  def _encode(self, s: str) -> list[int]:
    ids = {word: i for i, word in enumerate(self._words())}
    return [ids.get(word, self.unk_id) for word in s.split()]

  def _decode(self, ids) -> str:
    words = self._words()
    return ' '.join(filter(None, (words[i] for i in ids)))

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    words = self._words()
    table = tf.lookup.StaticHashTable(
      tf.lookup.KeyValueTensorInitializer(words[2:], range(2, len(words))),
      default_value=self.unk_id,
    )
    return table.lookup(tf.strings.split(s))

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    words = tf.gather(tf.constant(self._words()), ids)
    text = tf.strings.reduce_join(words, axis=-1, separator=' ')
    return tf.strings.strip(text)

  def __eq__(self, other) -> bool:
    """There is one such vocabulary at a time: the one of `Difficulty`."""
    return isinstance(other, VariableVocabulary)

  def __str__(self) -> str:
    """Shows the numbers behind it."""
    return f'VariableVocabulary({Difficulty()})'


def _uniform(shape, seed, limit):
  return tf.random.stateless_uniform(
    shape, seed, maxval=limit, dtype=tf.int32, alg='philox'
  )


def _example(index, seed, difficulty, ood):
  """Makes the example of that index: inputs i32[2 n + 1], targets i32[1]."""
  n, v = difficulty.num_assignments, difficulty.num_variables
  seed = tf.random.fold_in(seed, index, alg='philox')
  seeds = tf.random.split(seed, 3, alg='philox')
  values = _uniform([n], seeds[0], difficulty.num_values)
  if ood:
    query = _uniform([], seeds[1], v)
    others = _uniform([n - 1], seeds[2], v - 1)
    others += tf.cast(others >= query, tf.int32)  # skips over the query
    variables = tf.concat([[query], others], axis=0)
  else:
    variables = _uniform([n], seeds[1], v)
    ranks = tf.random.stateless_uniform([v], seeds[2], alg='philox')
    assigned = tf.reduce_any(variables[:, None] == tf.range(v), axis=0)
    query = tf.argmax(tf.where(assigned, ranks, -1.0), output_type=tf.int32)
  last = tf.reduce_max(tf.where(variables == query)[:, 0])

  vocabulary = VariableVocabulary()
  variables += vocabulary.first_variable
  values += vocabulary.first_value
  pairs = tf.reshape(tf.stack([variables, values], axis=1), [-1])
  query += vocabulary.first_variable
  return {
    'inputs': tf.concat([pairs, [query]], axis=0),
    'targets': values[last][None],
  }


class _Assignments(seqio.DataSource):
  """Endless examples for training, a fixed set for validation."""

  def __init__(self, ood: bool):
    self._ood = ood
    # The examples are independent: there is no order to shuffle.
    super().__init__(
      splits=('validation',) if ood else ('train', 'validation'),
      caching_permitted=False,
      performs_internal_shuffling=True,
    )

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """Every example can be made alone, so any number of hosts can share."""
    return True

  def list_shards(self, split):
    """Returns one shard: examples are made, not stored."""
    return [split]

  def get_dataset(
    self, split='train', shuffle=True, seed=None, shard_info=None
  ):
    """Returns the examples; `seed` chooses those of the training split."""
    del shuffle
    stream = _STREAMS['ood' if self._ood else 'in', split]
    stream_seed = tf.constant(
      [stream, (seed or 0) if split == 'train' else 0], tf.int64
    )
    difficulty = Difficulty()
    indices = tf.data.Dataset.range(_NUM_EXAMPLES[split])
    if shard_info:
      indices = indices.shard(shard_info.num_shards, shard_info.index)
    return indices.map(
      lambda i: _example(i, stream_seed, difficulty, self._ood),
      num_parallel_calls=tf.data.AUTOTUNE,
    )


def check_lengths(dataset, sequence_length):
  """Refuses lengths that would cut an example and so change its answer."""
  needed = {'inputs': Difficulty().inputs_length, 'targets': 1}
  for feature, length in needed.items():
    given = (sequence_length or needed).get(feature, 0)
    if given < length:
      raise UserError(
        f"TASK_FEATURE_LENGTHS['{feature}'] is {given}: variable assignment "
        f'with {Difficulty().num_assignments} assignments needs {needed}'
      )
  return dataset


def _register(name: str, ood: bool):
  feature = seqio.Feature(VariableVocabulary(), add_eos=False)
  seqio.TaskRegistry.add(
    name,
    source=_Assignments(ood),
    preprocessors=[check_lengths],
    output_features={'inputs': feature, 'targets': feature},
    shuffle_buffer_size=None,
  )


_register('variable_assignment', ood=False)
_register('variable_assignment_ood', ood=True)
seqio.MixtureRegistry.add(
  'variable_assignment_eval',
  ['variable_assignment', 'variable_assignment_ood'],
  default_rate=1,
)
