"""Vocabularies: SentencePiece trained on a task's own text, or bytes.

Every language-modelling task has a `TaskVocabulary`, which gin bindings
determine when it is first used:

    from selective_t5x.tasks import vocabularies
    VOCABULARY = @vocabularies.task_vocabulary()
    vocabularies.task_vocabulary.task = %MIXTURE_OR_TASK_NAME
    vocabularies.Choice.task = %MIXTURE_OR_TASK_NAME
    vocabularies.Choice.size = 8192

Choice.task lets a model be evaluated on any task, with the vocabulary that it
was trained with. Ids: 0 padding, 1 end of sequence, 2 unknown; there is no
start of sequence.
"""

import dataclasses
import functools
import hashlib
import io
import pathlib
from collections.abc import Iterator
from importlib import metadata

import gin
import numpy as np
import sentencepiece
import seqio
import tensorflow as tf
from absl import logging
from google.protobuf import message

from selective_t5x.errors import UserError, did_you_mean, is_integer
from selective_t5x.tasks import cache, tokenizer_json

KINDS = ('sentencepiece', 'bytes')

# SentencePiece learns its pieces from at most this much text: enough for 32,000
# pieces, in minutes rather than hours.
_TRAINING_CHARACTERS = 20_000_000

# Decoding restores the text: spaces, line ends and case are kept, and a
# character without a piece is spelt in bytes. The one exception is U+2581,
# SentencePiece's own mark of a space, which becomes a space.
_TRAINER_OPTIONS = {
  'pad_id': 0,
  'eos_id': 1,
  'unk_id': 2,
  'bos_id': -1,
  'byte_fallback': True,
  'normalization_rule_name': 'identity',
  'remove_extra_whitespaces': False,
  'add_dummy_prefix': False,
  'max_sentence_length': 2**30,  # the default leaves out lines over 4 KiB
  # Training sums depend on the number of threads. It is fixed, so the same text
  # gives the same pieces on any number of cores.
  'num_threads': 4,
}


@gin.configurable(module='selective_t5x.tasks.vocabularies')
@dataclasses.dataclass(frozen=True)
class Choice:
  """Which vocabulary the language-modelling tasks use; bound in gin.

  Attributes:
    kind: 'sentencepiece' or 'bytes' (ids 3 to 258, one a byte of UTF-8).
    size: pieces of a trained SentencePiece model, special ones and the 256
      bytes included.
    path: a ready SentencePiece model, or a Hugging Face tokenizer.json (a name
      that ends in .json); None: a model is trained on the task's
      training split, once (see the cache folder).
    task: the task or mixture that the model is trained on; every task uses its
      vocabulary, sentinels included. None: each task has its own.
  """

  kind: str = 'sentencepiece'
  size: int = 2048
  path: str | None = None
  task: str | None = None

  def __post_init__(self):
    """Refuses invalid values."""
    if self.kind not in KINDS:
      raise UserError(
        f'vocabularies.Choice.kind = {self.kind!r}: expected one of '
        f'{", ".join(KINDS)}{did_you_mean(str(self.kind), KINDS)}'
      )
    if self.kind == 'bytes' and self.path:
      raise UserError(
        "vocabularies.Choice.path is a SentencePiece model: kind 'bytes' has "
        'no use for it'
      )
    if not is_integer(self.size) or self.size < 1:
      raise UserError(
        f'vocabularies.Choice.size = {self.size!r}: expected a whole number'
      )


class TaskVocabulary(seqio.Vocabulary):
  """The vocabulary of a task, loaded or trained when it is first used.

  Two of them are equal if they resolve to the same vocabulary.
  """

  def __init__(self, task: str, extra_ids: int = 0):
    """Stores the arguments; reads nothing.

    Args:
      task: the task whose source has the text to learn pieces from.
      extra_ids: sentinels for span corruption, the last ids.
    """
    self.task = task
    super().__init__(extra_ids)

  def resolve(self) -> seqio.Vocabulary:
    """Returns the vocabulary itself, trained now if necessary.

    Raises:
      UserError: the bindings name no usable vocabulary.
    """
    choice = Choice()
    chosen = self if choice.task is None else _text_vocabulary(choice.task)
    if not isinstance(chosen, TaskVocabulary):
      return chosen
    source = _task(chosen.task).source
    settings = getattr(source, 'settings', lambda: None)()
    # This may run while a tf.data function is traced; the text is read outside.
    with tf.init_scope():
      return _resolve(choice, chosen.task, chosen.extra_ids, repr(settings))

  @property
  def vocab_size(self) -> int:
    """Number of ids, special ones included."""
    return self.resolve().vocab_size

  @property
  def _base_vocab_size(self) -> int:
    return self.vocab_size

  @property
  def bos_id(self):
    """Id of the start of a sequence; our own vocabularies have none."""
    return self.resolve().bos_id

  @property
  def eos_id(self) -> int:
    """Id of the end of a sequence."""
    return self.resolve().eos_id

  @property
  def unk_id(self) -> int:
    """Id of unknown text; a trained vocabulary never produces it."""
    return self.resolve().unk_id

  def _encode(self, s: str):
    return self.resolve().encode(s)

  def _decode(self, ids) -> str:
    return self.resolve().decode(ids)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    return self.resolve().encode_tf(s)

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    return self.resolve().decode_tf(ids)

  def __eq__(self, other) -> bool:
    """Compares the resolved vocabularies."""
    if isinstance(other, TaskVocabulary):
      return self.task == other.task or self.resolve() == other.resolve()
    return self.resolve() == other

  def __str__(self) -> str:
    """Names the task and the vocabulary."""
    return f'TaskVocabulary({self.task}: {self.resolve()})'


def task_vocabulary(task: str) -> seqio.Vocabulary:
  """Returns the vocabulary of a task's or mixture's targets, for a model.

  VOCABULARY = @vocabularies.task_vocabulary()
  vocabularies.task_vocabulary.task = %MIXTURE_OR_TASK_NAME

  Raises:
    UserError: if there is no such task or mixture.
  """
  names = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
  if task not in names:
    raise UserError(
      f'No task or mixture is named {task!r}{did_you_mean(task, names)} (a '
      'task is known once its module is imported: MIXTURE_OR_TASK_MODULE, or '
      'an import in a gin file)'
    )
  provider = seqio.get_mixture_or_task(task)
  return provider.output_features['targets'].vocabulary


def fingerprint(vocabulary: seqio.Vocabulary) -> str:
  """Returns a text that differs between vocabularies with different ids."""
  if isinstance(vocabulary, TaskVocabulary):
    vocabulary = vocabulary.resolve()
  if isinstance(vocabulary, tokenizer_json.TokenizerVocabulary):
    return f'{vocabulary.vocab_size} tokens, {vocabulary.digest}'
  if isinstance(vocabulary, seqio.SentencePieceVocabulary):
    pieces = hashlib.sha256(vocabulary.sp_model).hexdigest()[:16]
    return f'{vocabulary.vocab_size} pieces, {pieces}'
  return f'{type(vocabulary).__name__}, {vocabulary.vocab_size} ids'


def _text_vocabulary(task: str) -> seqio.Vocabulary:
  """Returns the vocabulary that vocabularies.Choice.task names."""
  vocabulary = task_vocabulary(task)
  if not isinstance(
    vocabulary,
    TaskVocabulary
    | seqio.SentencePieceVocabulary
    | tokenizer_json.TokenizerVocabulary,
  ):
    raise UserError(
      f'vocabularies.Choice.task = {task!r}: its vocabulary, {vocabulary}, '
      'cannot write text, so a model of it has no score on a task of text'
    )
  return vocabulary


@functools.cache
def _resolve(
  choice: Choice, task: str, extra_ids: int, settings: str
) -> seqio.Vocabulary:
  """Returns the vocabulary; `settings` of the source determine the text."""
  del settings
  if choice.kind == 'bytes':
    return seqio.ByteVocabulary(extra_ids)
  if choice.path:
    path = pathlib.Path(choice.path).expanduser()
    return load(path.absolute(), extra_ids)
  return load(train(task, choice.size), extra_ids)


def train(task: str, size: int) -> pathlib.Path:
  """Trains a SentencePiece model of `size` pieces on a task's text, once.

  It learns unigram pieces from the lines of the training split. The same text
  and size give the same file.

  Args:
    task: a task whose source gives text, or inputs and targets of text.
    size: number of pieces, the special ones and the 256 bytes included.

  Returns:
    The model's path: <cache>/vocabularies/<hash of text and options>.model.

  Raises:
    UserError: there is no text, or too little for `size` pieces.
  """
  documents = list(_training_documents(task))
  options = {**_TRAINER_OPTIONS, 'vocab_size': size}
  version = metadata.version('sentencepiece')
  key = cache.digest(repr((documents, sorted(options.items()), version)))
  lines = (
    line for document in documents for line in document.split('\n') if line
  )

  def write(path):
    characters = sum(map(len, documents))
    logging.info(
      'Training a vocabulary of %d pieces on %d documents of %s (%.1f million '
      'characters).',
      size,
      len(documents),
      task,
      characters / 1e6,
    )
    model = io.BytesIO()
    try:
      sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, minloglevel=1, **options
      )
    except RuntimeError as error:
      # SentencePiece puts its source line and condition before the sentence.
      reason = str(error).split('] ')[-1].strip()
      raise UserError(
        f'vocabularies.Choice.size = {size} does not suit the text of {task}: '
        f'{reason}'
      ) from error
    path.write_bytes(model.getvalue())

  return cache.build(f'vocabularies/{key}.model', write)


def _training_documents(task: str) -> Iterator[str]:
  """Yields documents of the training split, up to _TRAINING_CHARACTERS.

  Files are shuffled, so that the text does not come from the first few alone.
  """
  source = _task(task).source
  if 'train' not in source.splits:
    raise UserError(
      f'{task} has no training split to learn pieces from: bind '
      'vocabularies.Choice.task to the task that the model is trained on, or '
      'vocabularies.Choice.path to a SentencePiece model'
    )
  dataset = source.get_dataset('train', shuffle=True, seed=0)
  if not isinstance(dataset.element_spec, dict):  # e.g. a dataset of lines
    dataset = dataset.map(lambda text: {'text': text})
  spec = dataset.element_spec
  texts = [
    name
    for name in ('text', 'inputs', 'targets')
    if name in spec and spec[name].dtype == tf.string
  ]
  if not texts:
    raise UserError(f'{task} has no text to learn pieces from')
  characters_left = _TRAINING_CHARACTERS
  for example in dataset.as_numpy_iterator():
    for name in texts:
      for encoded in np.ravel(example[name]):
        text = encoded.decode()[:characters_left]
        yield text
        characters_left -= len(text)
        if not characters_left:
          return


def _task(name: str) -> seqio.Task:
  names = seqio.TaskRegistry.names()
  if name not in names:
    raise UserError(f'no task is named {name!r}{did_you_mean(name, names)}')
  return seqio.TaskRegistry.get(name)


def load(path: pathlib.Path, extra_ids: int) -> seqio.Vocabulary:
  """Returns the vocabulary of a SentencePiece model or a tokenizer.json.

  Raises:
    UserError: there is no such file, or seqio cannot use it.
  """
  if not path.is_file():
    raise UserError(f'vocabularies.Choice.path: there is no file {path}')
  if path.suffix == '.json':
    vocabulary = tokenizer_json.TokenizerVocabulary(str(path), extra_ids)
    _ = vocabulary.tokenizer  # says what is wrong
    return vocabulary
  vocabulary = seqio.SentencePieceVocabulary(str(path), extra_ids)
  try:
    tokenizer = vocabulary.tokenizer
  except (RuntimeError, message.DecodeError) as error:
    raise UserError(f'{path} is not a SentencePiece model') from error
  if tokenizer.pad_id() != 0 or tokenizer.eos_id() < 1:
    raise UserError(
      f'{path} has padding id {tokenizer.pad_id()} and end-of-sequence id '
      f'{tokenizer.eos_id()}: seqio needs padding 0 and an end of sequence'
    )
  return vocabulary
