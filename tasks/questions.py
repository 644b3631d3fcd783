"""Multiple-choice questions, each choice scored by its likelihood.

Questions come from the official files of a benchmark in a folder of DATA_DIR,
read in Python once when a data set is built, else from TensorFlow Datasets.
Both give the same questions; `downstream` converts each benchmark.

The t5 package's rank classification turns a question into one example a choice
and, from the scores, back into an answer. A choice is scored without an end of
sequence, since the question is what follows, not where it stops.

A cut of the stream of choices (seqio.Evaluator.num_examples, shards) may cut a
question. So an example has the number of its question in the file and the
question's number of choices, and the metrics count complete questions only.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gin
import numpy as np
import seqio
import t5.data.preprocessors
import tensorflow as tf

from selective_t5x.errors import UserError, is_integer
from selective_t5x.tasks import (
  choice_scores,
  data_dir,
  metrics,
  text_reader,
  tfds_source,
  vocabularies,
)
from selective_t5x.tasks.choice_scores import choice_accuracy as choice_accuracy

# Yields the lines of a file with a record, and the record.
Records = Iterator[tuple[text_reader.Line, Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Question:
  """Contexts and choices of a question; choices[label] is the right one.

  contexts[i] followed by choices[i] is a text. The contexts are mostly equal;
  they differ if a choice comes before the scored text, as in WinoGrande.
  """

  contexts: Sequence[str]
  choices: Sequence[str]
  label: int

  def __post_init__(self):
    """Refuses a label that is none of the choices."""
    if not 0 <= self.label < len(self.choices):
      raise ValueError(
        f'label {self.label} is outside the {len(self.choices)} choices'
      )


@dataclasses.dataclass(frozen=True)
class Files:
  """Names of a split's official files, at any depth below the folder.

  Attributes:
    records: names of the JSON lines or text; the first existing one is read.
    labels: names of a file with a label a line, the record's 'label'.
    labelled: False if the makers do not publish the answers: reading is an
      error that says so.
  """

  records: Sequence[str]
  labels: Sequence[str] = ()
  labelled: bool = True


@dataclasses.dataclass(frozen=True)
class Tfds:
  """A benchmark in TensorFlow Datasets.

  Attributes:
    name: the data set, with configuration and version.
    splits: {our split: theirs}.
    record: turns a NumPy example into an official record.
  """

  name: str
  splits: Mapping[str, str]
  record: Callable[[Mapping[str, Any]], Mapping[str, Any]]


class QuestionSource(seqio.DataSource):
  """A seqio source of {'inputs', 'targets': [c], 'label', 'number': []}.

  c is the number of choices; `number` counts the questions of the whole split,
  from 0. The training split contains only right choices, to train on.
  """

  def __init__(
    self,
    folder: str,
    files: Mapping[str, Files],
    question: Callable[[Mapping[str, Any]], Question],
    *,
    read: Callable[[pathlib.Path], Records] = text_reader.objects,
    tfds: Tfds | None = None,
  ):
    """Stores the settings; reads nothing.

    Args:
      folder: its name in DATA_DIR.
      files: {split: its files}.
      question: turns a record into a question. If there is a label file, the
        record's key 'label' is its line. Raises KeyError, TypeError, ValueError
        or AttributeError if the record differs from the makers' format.
      read: yields the lines of a file and the record of each.
      tfds: the data set to read if the folder does not exist.
    """
    self._folder = folder
    self._files = files
    self._question = question
    self._read = read
    self._tfds = tfds
    # Questions are independent and the source is small: the task shuffles.
    super().__init__(splits=tuple(files), caching_permitted=True)

  def settings(self) -> tuple[str | None, str | None]:
    """Returns what determines the questions: the folder, or the set's name.

    A vocabulary that is learnt from one folder differs from that of another.
    """
    folder = data_dir.folder(self._folder)
    if folder is not None:
      return str(folder), None
    return None, self._tfds.name if self._tfds else None

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """The whole split is in memory, so any number of hosts can share it."""
    return True

  def list_shards(self, split: str) -> list[str]:
    """Returns one shard."""
    return [split]

  def num_input_examples(self, split: str) -> int:
    """Returns the number of questions."""
    return len(self.questions(split))

  def questions(self, split: str) -> list[Question]:
    """Reads a split.

    Raises:
      UserError: a line is not as expected; the error names file and line.
    """
    if not self._files[split].labelled:
      raise UserError(
        f'{self._folder}: the official split {split!r} has no labels; use '
        "'validation'"
      )
    folder = data_dir.folder(self._folder)
    if folder is not None:
      records = self._local(folder, self._files[split])
    elif self._tfds is not None:
      records = self._from_tfds(split)
    else:
      raise UserError(
        f'{self._folder}: no folder of this name in DATA_DIR '
        f'({data_dir.root() or "not set"}), and TensorFlow Datasets does not '
        'have the set'
      )
    questions = []
    for where, record in records:
      try:
        questions.append(self._question(record))
      except (KeyError, TypeError, ValueError, AttributeError) as error:
        labels = self._files[split].labels
        raise UserError(f'{where}: {_reason(error, labels)}') from error
    if not questions:
      raise UserError(f'{self._folder}: the split {split!r} is empty')
    return questions

  def _local(
    self, folder: pathlib.Path, files: Files
  ) -> Iterator[tuple[str, Mapping[str, Any]]]:
    path = data_dir.find(folder, *files.records)
    labels_path = data_dir.find_any(folder, *files.labels)
    if labels_path is None:
      for line, record in self._read(path):
        yield line.where, record
      return
    labels = {
      line.number: line.text.strip()
      for line in text_reader.lines(labels_path)
      if line.text.strip()
    }
    records = list(self._read(path))
    if len(labels) != len(records):
      raise UserError(
        f'{labels_path} has {len(labels)} labels for the {len(records)} '
        f'lines of {path}'
      )
    for line, record in records:
      if line.number not in labels:
        raise UserError(
          f'{line.where}: no label on line {line.number} of {labels_path}'
        )
      where = f'{line.where} and {labels_path.name}, line {line.number}'
      yield where, {**record, 'label': labels[line.number]}

  def _from_tfds(self, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    source = tfds_source.TfdsSource(
      self._tfds.name,
      splits=tuple(self._tfds.splits.values()),
      otherwise=f'put the official files in <DATA_DIR>/{self._folder}',
    )
    examples = source.get_dataset(self._tfds.splits[split], shuffle=False)
    for index, example in enumerate(examples.as_numpy_iterator()):
      yield f'{self._tfds.name}, example {index}', self._tfds.record(example)

  def get_dataset(
    self, split='train', shuffle=True, seed=None, shard_info=None
  ):
    """Returns the questions in the order of their file."""
    del shuffle, seed
    questions = self.questions(split)
    if split == 'train':
      questions = [
        Question((q.contexts[q.label],), (q.choices[q.label],), 0)
        for q in questions
      ]
    contexts = tf.constant([c for q in questions for c in q.contexts])
    choices = tf.constant([c for q in questions for c in q.choices])
    ends = np.cumsum([len(q.choices) for q in questions])
    starts = np.concatenate([[0], ends[:-1]])
    labels = np.array([q.label for q in questions], np.int32)
    numbers = np.arange(len(questions), dtype=np.int32)
    dataset = tf.data.Dataset.from_tensor_slices(
      (starts, ends, labels, numbers)
    )
    if shard_info:
      dataset = dataset.shard(shard_info.num_shards, shard_info.index)
    return dataset.map(
      lambda start, end, label, number: {
        'inputs': contexts[start:end],
        'targets': choices[start:end],
        'label': label,
        'number': number,
      }
    )


def register(
  name: str,
  source: QuestionSource,
  metric_fn: Callable[..., Mapping[str, float]],
) -> seqio.Task:
  """Adds a task whose metric is computed from the likelihood of the choices.

  Args:
    name: of the task.
    source: of its questions.
    metric_fn: `choice_accuracy`, or another function of (targets, scores),
      where each target is a `choice_scores.Target`.
  """
  feature = seqio.Feature(vocabularies.TaskVocabulary(name), add_eos=False)
  return seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[
      first_questions,
      _examples,
      seqio.preprocessors.tokenize,
      keep_the_end,
    ],
    output_features={'inputs': feature, 'targets': feature},
    metric_objs=[metrics.of_scores(metric_fn, choice_scores.target)],
  )


@gin.configurable(module='selective_t5x.tasks.questions')
def first_questions(dataset, count: int | None = None):
  """Keeps the first questions of a split, counted over all its shards.

      questions.first_questions.count = %EVAL_QUESTIONS

  Args:
    dataset: of a QuestionSource.
    count: their number; None: all of them.

  Raises:
    UserError: `count` is not a valid number.
  """
  if count is None:
    return dataset
  if not is_integer(count) or count < 1:
    raise UserError(
      f'questions.first_questions.count = {count!r}: expected a whole number '
      'of 1 or more, or None for all questions'
    )
  return dataset.filter(lambda question: question['number'] < count)


def _examples(dataset):
  """Turns a question into one example a choice; see `choice_scores.Target`.

  `idx` is [number of the question in the split, of the choice in the question].
  """

  def counted(question):
    return {**question, 'choices': tf.size(question['targets'])}

  def features(example):
    choice = tf.strings.strip(example['targets'])
    example['idx'] = tf.stack([example.pop('number'), example['idx'][1]])
    return {**example, 'characters': tf.strings.length(choice, 'UTF8_CHAR')}

  dataset = t5.data.preprocessors.rank_classification(
    dataset.map(counted),
    inputs_fn=lambda question: question['inputs'],
    targets_fn=lambda question: question['targets'],
    is_correct_fn=lambda question: tf.one_hot(
      question['label'], tf.size(question['targets'])
    ),
    passthrough_feature_keys=['number', 'choices'],
  )
  return dataset.map(features, num_parallel_calls=tf.data.AUTOTUNE)


def keep_the_end(dataset, sequence_length):
  """Drops the beginning of examples that are too long; the choice comes last.

  The limit is the longer of the two features' lengths. 'truncated' tells
  whether tokens were dropped. Without lengths nothing is dropped.
  """
  row = max((sequence_length or {}).values(), default=2**30)

  def keep(example):
    targets = example['targets'][-row:]
    room = row - tf.size(targets)
    inputs = example['inputs']
    inputs = inputs[tf.maximum(tf.size(inputs) - room, 0) :]
    length = tf.size(inputs) + tf.size(targets)
    full_length = tf.size(example['inputs']) + tf.size(example['targets'])
    return {
      **example,
      'inputs': inputs,
      'targets': targets,
      'truncated': length < full_length,
    }

  return dataset.map(keep, num_parallel_calls=tf.data.AUTOTUNE)


def _reason(error: Exception, labels: Sequence[str]) -> str:
  if not isinstance(error, KeyError):
    return str(error)
  (key,) = error.args
  if key == 'label' and labels:
    return f'no label, and no file {" or ".join(labels)} beside it'
  return f'expected {key!r}, which is not there'
