"""The identity of results: everything that their values depend on.

It consists of the checkpoint (name and content), the gin configuration with
macros replaced by their values, the content of the files that it names, and the
engine. Settings of training, output paths and devices do not count. The code
does not count either: run.json has its commit.
"""

import functools
import glob
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from etils import epath

import selective_t5x
from selective_t5x import engine_finder
from selective_t5x.config import changes as config_changes
from selective_t5x.config import reader
from selective_t5x.errors import UserError, absolute_path, changes, is_remote
from selective_t5x.runs.files import read_json

# {name: value}
Identity = dict[str, str]

# Last names of configurables, and scopes, that only training calls.
_TRAINING = frozenset(
  {
    'train',
    'Trainer',
    'CheckpointConfig',
    'SaveCheckpointConfig',
    'create_learning_rate_scheduler',
    'summarize_gin_config',
  }
)
_TRAINING_SCOPES = ('train', 'train_eval', 'infer_eval')
_OPTIMIZERS = ('t5x.optimizers.', 't5x.adafactor.')
_TRAINING_PARAMETERS = frozenset({'optimizer_def'})
# Paths: `of_checkpoint` identifies the checkpoint; output paths do not count.
_PLACES = frozenset(
  {
    'RestoreCheckpointConfig.path',
    'RestoreCheckpointConfig.mode',
    'RestoreCheckpointConfig.restore_dataset',
    'RestoreCheckpointConfig.checkpoint_manager_cls',
    'infer.output_dir',
    'infer.merge_chunked_results',
    'infer.checkpoint_ds_iter',
    'infer.use_orbax',
    'infer.summarize_config_fn',
    'evaluate.output_dir',
    'evaluate.use_orbax',
    'evaluate.summarize_config_fn',
  }
)
# Longer files are identified by the time of their last change, not by content.
_HASHED_BYTES = 1 << 28
_LONGEST_PATH = 1000
_CHUNK = 1 << 22


def trained_alike(binding: reader.Binding) -> bool:
  """Whether a binding affects neither a trained model nor its results."""
  configurable = binding.full_selector.split('.')[-1]
  return (
    configurable in _TRAINING
    or configurable.endswith('Partitioner')
    or binding.scope.split('/')[0] in _TRAINING_SCOPES
    or binding.full_selector.startswith(_OPTIMIZERS)
    or binding.name in _TRAINING_PARAMETERS
    or config_changes.short_name(binding) in _PLACES
    or config_changes.of_trackers(binding)
  )


def of_config(
  config: reader.Config,
  is_free: Callable[[reader.Binding], bool] = trained_alike,
) -> Identity:
  """Returns the values of a configuration and the content of files it names.

  Args:
    config: the configuration, as read from gin files and bindings.
    is_free: whether a binding does not count.
  """
  parameters = config_changes.parameters(config, is_free)
  identity = {'engine': selective_t5x.engine_name()}
  identity |= {name: parameter.text for name, parameter in parameters.items()}
  values = (parameter.value for parameter in parameters.values())
  return identity | of_files(leaf for x in values for leaf in reader.leaves(x))


def of_checkpoint(path: str | os.PathLike) -> Identity:
  """Returns the name and the content of a checkpoint."""
  path = os.fspath(path)
  return {
    'checkpoint': absolute_path(path),
    'content of the checkpoint': content_of(path),
  }


def content_of(checkpoint: str | os.PathLike) -> str:
  """Returns a text that changes with the files of a checkpoint.

  This is the CRC-32 of its checksums, or, without checksums, of the names,
  sizes and times of its files. It is '' for a missing folder.
  """
  folder = epath.Path(checkpoint)
  if not folder.is_dir():
    return ''
  integrity = engine_finder.of_the_embedded_engine('integrity')
  return integrity.fingerprint(os.fspath(checkpoint))


def of_files(texts: Iterable[Any]) -> Identity:
  """Returns the content of local files that values of a configuration name.

  Args:
    texts: values of a configuration. Paths and patterns of files count, and
      checkpoints. A run's folder stands for its latest checkpoint. Other values
      are ignored.
  """
  identity = {}
  for text in dict.fromkeys(x for x in texts if isinstance(x, str)):
    if not set(text) & set('/.*') or is_remote(text):
      continue
    if len(text) > _LONGEST_PATH or '\n' in text or '\0' in text:
      continue
    path = os.path.expanduser(text)
    if os.path.isdir(path):
      checkpoint = latest_checkpoint(path)
      if checkpoint is not None:
        identity[f'content of {text}'] = content_of(checkpoint)
      continue
    files = [path] if os.path.isfile(path) else glob.glob(path, recursive=True)
    contents = [_content_of_file(x) for x in sorted(files) if os.path.isfile(x)]
    if len(contents) > 1:
      crc = zlib.crc32(repr(contents).encode())
      contents = [f'{len(contents)} files, {crc:08x}']
    if contents:
      identity[f'content of {text}'] = contents[0]
  return identity


def latest_checkpoint(path: str | os.PathLike) -> pathlib.Path | None:
  """Returns a local checkpoint, or the latest in a run's folder, or None."""
  folder = pathlib.Path(path)
  if re.fullmatch(r'checkpoint_\d+', folder.name):
    return folder if folder.is_dir() else None
  steps = (
    re.fullmatch(r'checkpoint_(\d+)', x.name) for x in folder.glob('check*')
  )
  latest = max((int(step[1]) for step in steps if step), default=None)
  return None if latest is None else folder / f'checkpoint_{latest}'


def _content_of_file(path: str) -> str:
  stat = os.stat(path)
  if stat.st_size > _HASHED_BYTES:
    return f'{stat.st_size} bytes, changed at {stat.st_mtime_ns}'
  crc = _checksum(path, stat.st_size, stat.st_mtime_ns)
  return f'{stat.st_size} bytes, {crc:08x}'


@functools.lru_cache(maxsize=4096)
def _checksum(path: str, size: int, mtime: int) -> int:
  """Returns the CRC-32 of a file; size and mtime are part of the cache key."""
  del size, mtime
  total = 0
  with open(path, 'rb') as file:
    while chunk := file.read(_CHUNK):
      total = zlib.crc32(chunk, total)
  return total


def difference(
  there: Mapping[str, str],
  here: Mapping[str, str],
  config: reader.Config | None = None,
) -> str:
  """Returns 'KEY is A there, B here; …' for all differences, or ''.

  Args:
    there: a recorded identity.
    here: the present identity.
    config: the present configuration. Its macros replace the names of the
      parameters that they set.
  """
  labels = {}
  if config is not None:
    every = config_changes.parameters(config, lambda binding: False)
    labels = {name: parameter.label for name, parameter in every.items()}
  was, now = {}, {}
  for key in {**there, **here}:
    if there.get(key) != here.get(key):
      label = labels.get(key, key)
      was[label] = there.get(key, '(not set)')
      now[label] = here.get(key, '(not set)')
  return changes(was, now)


def read(file: epath.Path) -> dict[str, Any] | None:
  """Returns a recorded identity; None if there is no such file.

  Raises:
    UserError: the file is no record of this module.
  """
  if not file.exists():
    return None
  record = read_json(file)
  if not isinstance(record, dict):
    raise UserError(f'{file}: expected a JSON object; move the results away')
  return record
