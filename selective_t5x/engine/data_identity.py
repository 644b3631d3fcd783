"""Describes the data of a training run, so that two runs can be compared.

`describe` names everything that determines the batches of a data set and their
order: the settings of DatasetConfig, the tasks with their preprocessors and
vocabularies, and the files, or the TensorFlow data set, behind them. The
description contains no data.

A data source that describes itself better than this module has a method
`data_identity(split)`, which returns {label: text, or the path of a file that
is read, or another data source}. Functions and classes are described by their
names and arguments, not by their code or module; `train_iterator` checks that
the batches themselves are the same.
"""

import contextlib
import dataclasses
import enum
import functools
import hashlib
import inspect
import pathlib
import types
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

# Files are identified by their content if all of them together are not longer
# than this, else by the time of their last change.
_HASHED_BYTES = 1 << 28
_NAMED_FILES = 100  # More files are described together.
_CHUNK = 1 << 22
_DEPTH = 6
_LONGEST_TEXT = 80

_OF_THE_DATASET_CONFIG = (
  'split',
  'batch_size',
  'task_feature_lengths',
  'shuffle',
  'seed',
  'use_cached',
  'pack',
  'use_custom_packing_ops',
  'trim_output_features',
)


def describe(
  cfg: Any,
  provider: seqio.Task | seqio.Mixture,
  feature_converter: Callable[..., Any],
  num_shards: int | None = None,
) -> dict[str, str]:
  """Returns {aspect: value} of everything that determines the batches.

  Args:
    cfg: T5X's DatasetConfig.
    provider: the task or mixture that it names.
    feature_converter: turns task features into model features.
    num_shards: number of data shards of a batch; None: unknown.
  """
  identity = {'task': provider.name}
  for name in _OF_THE_DATASET_CONFIG:
    if hasattr(cfg, name):
      identity[name] = text(getattr(cfg, name))
  identity['feature converter'] = text(feature_converter)
  if num_shards is not None:
    identity['data shards'] = str(num_shards)
  tasks = [
    task for task in seqio.get_subtasks(provider) if cfg.split in task.splits
  ]
  for task in tasks:
    of_task = _of_task(task, cfg.split, cfg.use_cached)
    if isinstance(provider, seqio.Mixture):
      of_task['rate'] = text(float(provider.get_rate(task)))
      of_task = {f'{task.name}: {k}': v for k, v in of_task.items()}
    identity |= of_task
  return identity


def _of_task(task: seqio.Task, split: str, use_cached: bool) -> dict[str, str]:
  identity = {}
  for number, preprocessor in enumerate(task.preprocessors, start=1):
    if not isinstance(preprocessor, seqio.CacheDatasetPlaceholder):
      identity[f'preprocessor {number}'] = text(preprocessor)
  for name, feature in task.output_features.items():
    identity[f'feature {name!r}'] = _of_feature(feature)
  identity['shuffle buffer'] = str(task.shuffle_buffer_size)
  if use_cached and task.supports_caching:
    files = sorted(tf.io.gfile.glob(f'{task.cache_dir}/{split}.tfrecord*'))
    identity['source'] = 'the cache of the task'
    return identity | _of_files([(_base_name(file), file) for file in files])
  return identity | _of_source(task.source, split)


def _of_feature(feature: seqio.Feature) -> str:
  fields = {
    field.name: getattr(feature, field.name)
    for field in dataclasses.fields(feature)
  }
  return ', '.join(f'{k}={text(v)}' for k, v in fields.items())


def _of_source(source: seqio.DataSource, split: str) -> dict[str, str]:
  if hasattr(source, 'data_identity'):
    return _of_own_account(source, split)
  identity = {'source': _name(type(source))}
  if isinstance(source, seqio.TfdsDataSource):
    return identity | _of_tensorflow_dataset(source, split)
  if isinstance(source, seqio.FunctionDataSource):
    return identity | {'function': text(source._dataset_fn)}
  if isinstance(source, seqio.FileDataSource):
    identity['reader'] = text(source._reader)
    for name in ('_cycle_length', '_block_length', '_file_shuffle_buffer_size'):
      identity[name.strip('_')] = text(getattr(source, name))
  else:
    identity['source'] += _arguments(_texts(_attributes(source), _DEPTH))
  shards = source.list_shards(split)
  if all(isinstance(shard, str) and _is_file(shard) for shard in shards):
    identity |= _of_files([(_base_name(shard), shard) for shard in shards])
  return identity


def _of_own_account(source: Any, split: str) -> dict[str, str]:
  """Returns a source's own description, with the checksums of its files."""
  identity, files = {'source': _name(type(source))}, []
  for label, value in source.data_identity(split).items():
    if isinstance(value, pathlib.Path):
      files.append((label, str(value)))
    elif isinstance(value, seqio.DataSource):
      identity |= _of_source(value, split)
    else:
      identity[label] = str(value)
  return identity | (_of_files(files) if files else {})


def _of_tensorflow_dataset(
  source: seqio.TfdsDataSource, split: str
) -> dict[str, str]:
  loader = source.tfds_dataset
  return {
    'TensorFlow data set': loader.info.full_name,
    'its examples': str(loader.size(split)),
  }


def _base_name(path: str) -> str:
  return path.rsplit('/', 1)[-1]


def _is_file(path: str) -> bool:
  return tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path)


def _of_files(files: Sequence[tuple[str, str]]) -> dict[str, str]:
  """Returns {'file <name>': its size, and its checksum or time of change}.

  The folder of a file does not count: data may be moved.

  Args:
    files: (name, path) of each, in reading order.
  """
  stats = [(name, path, tf.io.gfile.stat(path)) for name, path in files]
  total = sum(stat.length for _, _, stat in stats)
  lines = []
  for name, path, stat in stats:
    mark = (
      f'checksum {_checksum(path, stat.length, stat.mtime_nsec):08x}'
      if total <= _HASHED_BYTES
      else f'changed at {stat.mtime_nsec / 1e9:.3f}'
    )
    lines.append((f'file {name}', f'{stat.length} bytes, {mark}'))
  if len(lines) <= _NAMED_FILES and len(dict(lines)) == len(lines):
    return {'files': str(len(lines))} | dict(lines)
  digest = hashlib.sha256(repr(lines).encode()).hexdigest()[:16]
  return {'files': f'{len(lines)} of {total} bytes, digest {digest}'}


@functools.lru_cache(maxsize=4096)
def _checksum(path: str, length: int, mtime: int) -> int:
  """Returns the CRC-32 of a file; length and mtime invalidate the cache."""
  del length, mtime
  total = 0
  with tf.io.gfile.GFile(path, 'rb') as file:
    while chunk := file.read(_CHUNK):
      total = zlib.crc32(chunk, total)
  return total


def _brief(text: str) -> str:
  """Returns a text, or the digest of one so long that it may be data."""
  if len(text) <= _LONGEST_TEXT:
    return text
  digest = hashlib.sha256(text.encode(errors='replace')).hexdigest()[:16]
  return f'{len(text)} characters, {digest}'


def text(value: Any, depth: int = _DEPTH) -> str:
  """Returns a description of a value, the same in every process."""
  if isinstance(value, str | bytes | bool | int | float | type(None)):
    return _brief(repr(value))
  if not depth:
    return '…'
  inner = functools.partial(text, depth=depth - 1)
  if isinstance(value, seqio.Vocabulary):
    return _of_vocabulary(value)
  if isinstance(value, Mapping):
    pairs = sorted((inner(k), inner(v)) for k, v in value.items())
    return '{' + ', '.join(f'{k}: {v}' for k, v in pairs) + '}'
  if isinstance(value, set | frozenset):
    return '{' + ', '.join(sorted(map(inner, value))) + '}'
  if isinstance(value, list | tuple):
    return _brief('[' + ', '.join(map(inner, value)) + ']')
  if isinstance(value, functools.partial | types.FunctionType):
    return _of_function(value, depth)
  if isinstance(value, types.MethodType):
    return f'{inner(value.__self__)}.{value.__name__}'
  if isinstance(value, type | types.BuiltinFunctionType):
    return _name(value)
  if isinstance(value, tf.DType | np.dtype):
    return value.name
  if isinstance(value, np.generic | enum.Enum):
    return repr(value)
  if isinstance(value, np.ndarray | tf.Tensor):
    array = np.asarray(value)
    content = array.tobytes() if array.dtype != object else repr(array).encode()
    return f'{array.dtype.name}{list(array.shape)} {zlib.crc32(content):08x}'
  # Never repr: it may contain an address, which differs between processes.
  is_set_up = callable(value) or dataclasses.is_dataclass(value)
  attributes = _attributes(value) if is_set_up else {}
  return _name(type(value)) + _arguments(_texts(attributes, depth - 1))


def _texts(values: Mapping[Any, Any], depth: int) -> dict[Any, str]:
  return {name: text(value, depth) for name, value in values.items()}


def _arguments(texts: Mapping[Any, str]) -> str:
  listed = ', '.join(f'{name}={text}' for name, text in texts.items())
  return f'({listed})' if listed else ''


_BASE_ATTRIBUTES = {
  *('_splits', '_num_input_examples'),
  *('_caching_permitted', '_performs_internal_shuffling'),
}
_PLAIN = (
  (str | bytes | bool | int | float | type(None))
  | (list | tuple | Mapping)
  | (types.FunctionType | functools.partial | seqio.Vocabulary)
)


def _attributes(value: Any) -> dict[str, Any]:
  """Returns the attributes with which an object was set up."""
  return {
    name.strip('_'): attribute
    for name, attribute in sorted(getattr(value, '__dict__', {}).items())
    if isinstance(attribute, _PLAIN) and name not in _BASE_ATTRIBUTES
  }


def _of_function(value: Callable, depth: int) -> str:
  """Returns a function's name, its arguments and its closure's variables."""
  positional, keywords = (), {}
  while isinstance(value, functools.partial):
    positional = (*value.args, *positional)
    keywords = value.keywords | keywords
    value = value.func
  arguments = _texts(dict(enumerate(positional)) | keywords, depth - 1)
  if not isinstance(value, types.FunctionType):
    return text(value, depth - 1) + _arguments(arguments)
  # The function inside a decorator says more than the decorator.
  function = inspect.unwrap(value)
  defaults = {
    name: parameter.default
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.default is not inspect.Parameter.empty
    and parameter.default is not None
  }
  outer = _texts(defaults | _closure(function), depth - 1)
  return _name(function) + _arguments(outer | arguments)


def _closure(function: types.FunctionType) -> dict[str, Any]:
  """Returns the variables that a function takes from enclosing ones."""
  values = {}
  for name, cell in zip(
    function.__code__.co_freevars, function.__closure__ or (), strict=True
  ):
    with contextlib.suppress(ValueError):  # The variable has no value yet.
      values[name] = cell.cell_contents
  return values


def _of_vocabulary(vocabulary: seqio.Vocabulary) -> str:
  """Returns a text that differs between vocabularies with different ids."""
  if hasattr(vocabulary, 'resolve'):
    vocabulary = vocabulary.resolve()
  description = f'{_name(type(vocabulary))} of {vocabulary.vocab_size} ids'
  if isinstance(vocabulary, seqio.SentencePieceVocabulary):
    pieces = hashlib.sha256(vocabulary.sp_model).hexdigest()[:16]
    description += f', {vocabulary.extra_ids} extra, pieces {pieces}'
  elif hasattr(vocabulary, 'digest'):
    description += f', {vocabulary.extra_ids} extra, {vocabulary.digest}'
  return description


def _name(value: Any) -> str:
  return value.__qualname__.replace('<locals>.', '')
