"""Tasks of files of tf.train.Examples, for inference."""

import functools
import hashlib
from collections.abc import Mapping, Sequence

import seqio
import tensorflow as tf

from selective_t5x.errors import UserError, did_you_mean

_READERS = {'tfrecord': tf.data.TFRecordDataset}


def create_task_from_tfexample_file(
  paths: Sequence[str],
  file_type: str,
  inputs_key: str,
  targets_key: str | None,
  features: Mapping[str, seqio.Feature],
  task_id: str | None = None,
) -> str:
  """Registers a task of the examples in files; returns its name.

  Args:
    paths: patterns of the files, which hold serialised tf.train.Examples.
    file_type: 'tfrecord'.
    inputs_key: the feature of an example with the inputs, UTF-8 text.
    targets_key: the feature with the targets, for scores; None: they are empty.
    features: {'inputs' and 'targets': vocabulary and settings}.
    task_id: end of the task's name; None: from the other arguments.

  Returns:
    the name of the task, whose split is 'infer'.

  Raises:
    UserError: no file matches, or the type is another.
  """
  paths = [paths] if isinstance(paths, str) else list(paths)
  if not tf.io.gfile.glob(paths):
    raise UserError(f'Missing or invalid paths: {paths}: no file matches')
  if file_type not in _READERS:
    raise UserError(
      f'create_task_from_tfexample_file.file_type = {file_type!r}: expected '
      f'{", ".join(_READERS)}{did_you_mean(file_type, _READERS)}'
    )
  keys = [key for key in (inputs_key, targets_key) if key]
  if task_id is None:
    identity = ':'.join([*paths, inputs_key, targets_key or ''])
    task_id = hashlib.md5(identity.encode()).hexdigest()[:10]
    if f'infer_{task_id}' in seqio.TaskRegistry.names():
      return f'infer_{task_id}'
  seqio.TaskRegistry.add(
    f'infer_{task_id}',
    source=seqio.TFExampleDataSource(
      {'infer': paths},
      feature_description={
        key: tf.io.FixedLenFeature([], tf.string) for key in keys
      },
      reader_cls=_READERS[file_type],
    ),
    preprocessors=[
      functools.partial(
        seqio.preprocessors.rekey,
        key_map={'inputs': inputs_key, 'targets': targets_key},
      ),
      seqio.preprocessors.tokenize_and_append_eos,
    ],
    output_features=features,
  )
  return f'infer_{task_id}'
