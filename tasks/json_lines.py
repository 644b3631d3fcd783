"""A task made of a file of JSON lines, for inference.

    {"inputs": "translate English to German: Hello", "targets": "Hallo"}

The task uses the model's vocabulary and has one split, 'infer', with the file's
lines in order. gin/runs/infer_file.gin uses it.
"""

import hashlib
import json
import pathlib
import re
from collections.abc import Mapping

import seqio
import tensorflow as tf

from selective_t5x.errors import UserError
from selective_t5x.tasks import text_reader

SPLIT = 'infer'


def read(path: str, keys: Mapping[str, str | None]) -> dict[str, list[str]]:
  """Reads a file of JSON lines.

  Args:
    path: the file; `text_reader` has the rules.
    keys: {feature: the key of its text, or None for no text}.

  Returns:
    {feature: its text on each line}.

  Raises:
    UserError: the file is missing or empty, or a line has no text for a key;
      the error names file and line.
  """
  columns = {feature: [] for feature in keys}
  for line, record in text_reader.objects(path):
    for feature, key in keys.items():
      text = '' if key is None else text_reader.text_under(key, record, line)
      columns[feature].append(text)
  if not any(columns.values()):
    raise UserError(f'{path}: expected a JSON object on each line, found none')
  return columns


def task_from_file(
  path: str,
  features: Mapping[str, seqio.Feature],
  inputs_key: str = 'inputs',
  targets_key: str | None = None,
  task_id: str | None = None,
) -> str:
  """Registers a task made of a file's lines, and returns its name.

  Example:
    utils.DatasetConfig.mixture_or_task_name = @json_lines.task_from_file()
    json_lines.task_from_file:
      path = 'questions.jsonl'
      features = {'inputs': @inputs/seqio.Feature(),
                  'targets': @targets/seqio.Feature()}

  Args:
    path: the file.
    features: 'targets', and 'inputs' for a model that has them.
    inputs_key: the key of the inputs in each object.
    targets_key: the key of the targets, which scoring needs; None: no targets.
    task_id: the task's name; None: made from the file's name and content, so
      that results of different contents have different names.

  Raises:
    UserError: see `read`.
  """
  keys = {'inputs': inputs_key, 'targets': targets_key}
  keys = {name: key for name, key in keys.items() if name in features}
  columns = read(path, keys)
  if task_id is None:
    digest = hashlib.sha256(json.dumps(columns).encode()).hexdigest()[:8]
    stem = re.sub(r'\W', '_', pathlib.Path(path).stem)
    task_id = f'{stem}_{digest}'
  if task_id in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove(task_id)

  def dataset(split, shuffle_files=False, seed=None):
    del split, shuffle_files, seed
    return tf.data.Dataset.from_tensor_slices(columns)

  seqio.TaskRegistry.add(
    task_id,
    source=seqio.FunctionDataSource(dataset, splits=(SPLIT,)),
    preprocessors=[
      seqio.preprocessors.tokenize,
      seqio.preprocessors.append_eos_after_trim,
    ],
    output_features=features,
  )
  return task_id
