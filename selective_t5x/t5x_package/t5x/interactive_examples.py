"""Datasets of examples given as texts, for an `InteractiveModel`."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf

from selective_t5x.errors import UserError

# A text, or {'input': text, 'target': text}.
Examples = Sequence[str | Mapping[str, str]]
Preprocessors = Sequence[Callable[..., tf.data.Dataset]]


def get_dataset_from_natural_text_examples(
  examples: Examples,
  preprocessors: Preprocessors,
  task_feature_lengths: Mapping[str, int],
  features: Mapping[str, seqio.Feature],
) -> tf.data.Dataset:
  """Returns a dataset of examples given as texts.

  Args:
    examples: an example that is a text has an empty target.
    preprocessors: seqio's functions of datasets, applied in order.
    task_feature_lengths: tokens of each feature; longer ones are trimmed.
    features: {'inputs' and 'targets': vocabulary and settings}.

  Raises:
    UserError: the preprocessors leave a feature out.
  """
  dataset = _texts(examples)
  offered = {
    'sequence_length': task_feature_lengths,
    'output_features': features,
  }
  for preprocessor in preprocessors:
    names = inspect.signature(preprocessor).parameters
    taken = {name: offered[name] for name in offered if name in names}
    dataset = preprocessor(dataset, **taken)
  for name, feature in features.items():
    if name not in dataset.element_spec and feature.required:
      raise UserError(
        'Task dataset is missing expected output feature after preprocessing: '
        f'{name}'
      )
  return seqio.utils.trim_dataset(dataset, task_feature_lengths, features)


def _texts(examples: Examples) -> tf.data.Dataset:
  """Returns the dataset of the texts 'inputs' and 'targets'."""
  pairs = [
    (e, '') if isinstance(e, str) else (e['input'], e['target'])
    for e in examples
  ]
  inputs, targets = zip(*pairs, strict=True)
  return tf.data.Dataset.from_tensor_slices(
    {'inputs': list(inputs), 'targets': list(targets)}
  )


def get_batches_from_seqio(
  task_or_mixture_name: str,
  split: str,
  batch_size: int,
  num_batches: int,
  get_pretokenized_examples: bool = True,
  sequence_length: Mapping[str, int] | None = None,
  **get_dataset_kwargs,
) -> Sequence[Sequence[Mapping[str, Any]]]:
  """Returns batches of {'input', 'target'} of a task's first examples.

  Args:
    task_or_mixture_name: a registered task or mixture.
    split: its split.
    batch_size: examples of a batch.
    num_batches: number of batches.
    get_pretokenized_examples: whether they are texts; else lists of ids.
    sequence_length: tokens of each feature.
    **get_dataset_kwargs: further arguments of its get_dataset.

  Raises:
    UserError: it has too few examples.
  """
  dataset = seqio.get_mixture_or_task(task_or_mixture_name).get_dataset(
    sequence_length=sequence_length, split=split, **get_dataset_kwargs
  )
  suffix = '_pretokenized' if get_pretokenized_examples else ''
  wanted = batch_size * num_batches
  rows = [
    {
      key: value if get_pretokenized_examples else value.tolist()
      for key, value in (
        ('input', example[f'inputs{suffix}']),
        ('target', example[f'targets{suffix}']),
      )
    }
    for example in dataset.take(wanted).as_numpy_iterator()
  ]
  if len(rows) < wanted:
    raise UserError(
      f'{task_or_mixture_name}: {len(rows)} examples, expected {wanted} '
      f'({num_batches} batches of {batch_size})'
    )
  return [rows[i : i + batch_size] for i in range(0, wanted, batch_size)]


def get_seqio_task_from_examples(
  task_name: str,
  interactive_model,
  examples: Examples,
  preprocessors: Preprocessors,
  metric_fns: Sequence[Callable] | None = None,
  add_to_registry: bool = True,
) -> seqio.Task | seqio.Mixture:
  """Returns a task of examples given as texts, with the splits of runs.

  Args:
    task_name: the task's name.
    interactive_model: an InteractiveModel, which has the features.
    examples: the examples of the splits train and validation.
    preprocessors: the task's, which make the features.
    metric_fns: the task's metrics.
    add_to_registry: whether the task is registered first; else it is already.
  """
  if add_to_registry:
    seqio.TaskRegistry.add(
      task_name,
      seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: _texts(examples),
        splits=['train', 'validation'],
      ),
      preprocessors=list(preprocessors),
      output_features=interactive_model.features,
      metric_fns=list(metric_fns or ()),
    )
  return seqio.get_mixture_or_task(task_name)
