"""Base of the synthetic tasks.

A task is a small file: a frozen dataclass of its difficulty, bound in gin, a
function that makes one example, and a call of `register`. copy_task.py is the
shortest; docs/tasks/synthetic.md explains one step by step.

Features are `inputs` and `targets`, without an end of sequence; the loss falls
on the targets only. The split train is endless and follows the seed of the data
set; validation and test are 10,000 examples each, always the same. Small
difficulties have fewer possible examples, so splits then share some.

Stateless random operations of TensorFlow make every example from its index, so
the state of the input pipeline can be saved and any number of hosts can share
it. Nothing is read from a file.
"""

import abc
import functools
from collections.abc import Callable, Mapping
from typing import NoReturn

import seqio
import tensorflow as tf

from selective_t5x.errors import UserError
from selective_t5x.tasks import metrics

# The ids before it are 0 padding, 1 end of sequence, 2 unknown.
FIRST_ID = 3
_UNKNOWN = 2

# Each split has a stream of random numbers. Tasks that share an example
# function need different streams.
STREAMS = {'train': 0, 'validation': 1, 'test': 2}
_NUM_EXAMPLES = {'train': 2**40, 'validation': 10_000, 'test': 10_000}


class Difficulty(abc.ABC):
  """Difficulty of a task: the base of every task's own frozen dataclass.

  It is bound in gin and read whenever a data set or a vocabulary is used.
  """

  @property
  @abc.abstractmethod
  def words(self) -> list[str]:
    """The task's symbols, in the order of their numbers; no spaces in them."""

  def check(self, **least: int):
    """Refuses fields that are not whole numbers of at least these values.

    Raises:
      UserError: names the field, its value and the least value.
    """
    for field, minimum in least.items():
      value = getattr(self, field)
      if type(value) is not int or value < minimum:  # True is no number
        self.refuse(field, f'a whole number of at least {minimum}')

  def refuse(self, field: str, expected: str) -> NoReturn:
    """Raises a UserError with the expected value of a field."""
    module = type(self).__module__.split('.')[-1]
    raise UserError(
      f'{module}.Difficulty.{field} = {getattr(self, field)!r}: '
      f'expected {expected}'
    )


class SymbolVocabulary(seqio.Vocabulary):
  """One token a word of a `Difficulty`, whose gin bindings it follows.

  Ids: 0 padding, 1 end of sequence (reserved for seqio, no task appends it),
  2 unknown, then the words. Text is words separated by spaces.
  """

  def __init__(self, difficulty: type[Difficulty]):
    """Stores the class; it is instantiated at every use."""
    self.difficulty = difficulty
    super().__init__()

  @property
  def bos_id(self):
    """There is none."""
    return None

  @property
  def eos_id(self) -> int:
    """Reserved for seqio; the tasks append none."""
    return 1

  @property
  def unk_id(self) -> int:
    """Stands for every word that the task does not have."""
    return _UNKNOWN

  @property
  def _base_vocab_size(self) -> int:
    return len(self._words())

  def _words(self) -> list[str]:
    """Returns the word of each id; padding and end of sequence have none."""
    return ['', '', '?', *self.difficulty().words]

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
    """Compares the difficulties: each has one vocabulary at a time."""
    return (
      isinstance(other, SymbolVocabulary)
      and self.difficulty is other.difficulty
    )

  def __str__(self) -> str:
    """Shows the numbers behind it."""
    module = self.difficulty.__module__.split('.')[-1]
    return f'SymbolVocabulary({module}.{self.difficulty()})'


# Makes an example from a seed i64[2] and a difficulty: inputs i32[n], targets
# i32[m], symbols numbered from 0 as in `Difficulty.words`. n and m are static.
ExampleFn = Callable[[tf.Tensor, Difficulty], tuple[tf.Tensor, tf.Tensor]]


def letters(count: int) -> list[str]:
  """Returns `count` names: a, b, ... z, a1, b1, ..."""
  alphabet = 'abcdefghijklmnopqrstuvwxyz'
  return [
    alphabet[i % 26] + (str(i // 26) if i >= 26 else '') for i in range(count)
  ]


def split_seed(seed: tf.Tensor, count: int) -> tf.Tensor:
  """Returns i64[count, 2], independent seeds made from one."""
  return tf.random.split(seed, count, alg='philox')


def uniform(seed: tf.Tensor, shape: list[int], limit: int) -> tf.Tensor:
  """Returns i32[shape], uniform over 0, ... limit - 1."""
  return tf.random.stateless_uniform(
    shape, seed, maxval=limit, dtype=tf.int32, alg='philox'
  )


def permutation(seed: tf.Tensor, count: int) -> tf.Tensor:
  """Returns i32[count], 0, ... count - 1 in random order."""
  keys = tf.random.stateless_uniform([count], seed, alg='philox')
  return tf.argsort(keys, stable=True)


def register(
  name: str,
  difficulty: type[Difficulty],
  example: ExampleFn,
  streams: Mapping[str, int] = STREAMS,
) -> seqio.Task:
  """Adds a synthetic task; see the top of this file.

  Args:
    name: of the task.
    difficulty: the dataclass, bound in gin; its words are the vocabulary.
    example: makes an example from a seed and a difficulty.
    streams: {split: its stream of random numbers}, for the task's splits among
      train, validation and test.
  """
  feature = seqio.Feature(SymbolVocabulary(difficulty), add_eos=False)
  return seqio.TaskRegistry.add(
    name,
    source=_Source(difficulty, example, streams),
    preprocessors=[functools.partial(check_lengths, task=name)],
    output_features={'inputs': feature, 'targets': feature},
    metric_objs=[metrics.of_scores(metrics.exact_match)],
    shuffle_buffer_size=None,
  )


class _Source(seqio.DataSource):
  """Endless examples for training, fixed sets for evaluation."""

  def __init__(self, difficulty, example, streams):
    self._difficulty = difficulty
    self._example = example
    self._streams = dict(streams)
    # The examples are independent: there is no order to shuffle.
    super().__init__(
      splits=tuple(streams),
      caching_permitted=False,
      performs_internal_shuffling=True,
    )

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """Is True: every example is made alone, so any hosts can share them."""
    return True

  def list_shards(self, split):
    """Returns one shard: examples are made, not stored."""
    return [split]

  def data_identity(self, split):
    """Returns what determines the examples, besides the seed."""
    return {
      'difficulty': repr(self._difficulty()),
      'stream': str(self._streams[split]),
    }

  def get_dataset(
    self, split='train', shuffle=True, seed=None, shard_info=None
  ):
    """Returns the examples; `seed` chooses those of the training split."""
    del shuffle
    stream_seed = tf.constant(
      [self._streams[split], (seed or 0) if split == 'train' else 0], tf.int64
    )
    difficulty = self._difficulty()

    def make(index):
      seed = tf.random.fold_in(stream_seed, index, alg='philox')
      inputs, targets = self._example(seed, difficulty)
      return {'inputs': inputs + FIRST_ID, 'targets': targets + FIRST_ID}

    indices = tf.data.Dataset.range(_NUM_EXAMPLES[split])
    if shard_info:
      indices = indices.shard(shard_info.num_shards, shard_info.index)
    return indices.map(make, num_parallel_calls=tf.data.AUTOTUNE)


def check_lengths(
  dataset: tf.data.Dataset,
  sequence_length: Mapping[str, int] | None,
  task: str,
) -> tf.data.Dataset:
  """Returns the dataset itself if its examples fit.

  Raises:
    UserError: a length would cut an example and change its answer.
  """
  needs = {name: spec.shape[0] for name, spec in dataset.element_spec.items()}
  for feature, length in needs.items():
    bound_length = (sequence_length or needs).get(feature, 0)
    if bound_length < length:
      raise UserError(
        f"TASK_FEATURE_LENGTHS['{feature}'] is {bound_length}: {task} at this "
        f'difficulty needs {needs}'
      )
  return dataset
