"""The training batches, and the position in them that a checkpoint saves.

A position is a number of batches. It is saved with a description of the data
and a checksum of the last batch, but without data: a resumed run builds the
same pipeline and goes through the batches before the position. The checksum
detects changes that the description cannot show, such as a source that is not
deterministic or changed code.
"""

import contextlib
import contextvars
import itertools
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from clu.data import dataset_iterator
from etils import epath

from selective_t5x.errors import RunError, UserError, changes
from t5x import data_reading
from t5x.data_reading import InterruptibleIterator

_SUFFIX = '.json'
_STATE_SUFFIX = '.index'  # of TensorFlow's checkpoints
_LOG_SECONDS = 10.0
_PATIENCE_SECONDS = 2.0

_accepted = contextvars.ContextVar('accepted', default=False)


@contextlib.contextmanager
def changes_accepted(accepted: bool = True) -> Iterator[None]:
  """Sets whether a run may resume with other training data."""
  token = _accepted.set(accepted)
  try:
    yield
  finally:
    _accepted.reset(token)


class TrainIterator(dataset_iterator.DatasetIterator):
  """Batches on the devices, and a position that can be saved and restored.

  Attributes:
    identity: returns {aspect: value} of everything that determines the batches,
      see `data_identity`; called when a position is saved or restored.
    seed: the seed of the data, saved with the position.
    rebuild: makes the dataset again. A second iteration over a tf.data.Dataset
      is shuffled in another order.
    explain: called if no batch comes, or none for some time; raises UserError
      if it knows the reason.
    stopped: tells whether to end a wait, see `InterruptibleIterator`.
  """

  def __init__(self, dataset: tf.data.Dataset, partitioner):
    self.identity: Callable[[], Mapping[str, str]] = dict
    self.rebuild: Callable[[], tf.data.Dataset] | None = None
    self.seed: int | None = None
    self.explain: Callable[[], Any] = data_reading.never
    self.stopped: Callable[[float], bool] = data_reading.never
    self._dataset: tf.data.Dataset | None = dataset
    self._spec = dataset.element_spec
    self._partitioner = partitioner
    self.reset()

  def reset(self) -> None:
    """Starts from the beginning."""
    self._go_to(0, None)

  def _go_to(self, batches: int, checksum: int | None) -> None:
    """Makes batch number `batches` the next one, lazily.

    Args:
      batches: number of batches before it.
      checksum: checksum of the last of these; None: unknown.
    """
    self._batches, self._checksum = batches, checksum
    self._last, self._next, self._source = None, None, None

  def __next__(self):
    batch = self._peek()
    self._last, self._next = batch, None
    self._batches += 1
    return self._partitioner.put_batch(batch)

  def peek(self) -> None:
    """Waits for the next batch, which stays the next.

    Raises:
      UserError: the data is empty, or the batches before the position have
        changed.
      RunError: the data cannot be read, or there is no batch.
    """
    try:
      self._peek()
    except RunError as error:
      if isinstance(error.__context__, StopIteration):
        self.explain()
      raise

  def _peek(self) -> Mapping[str, np.ndarray]:
    if self._next is None:
      with data_reading.reading('the training data'):
        if self._source is None:
          self._source = self._first_batches()
        self._next = next(self._source)
    return self._next

  def _first_batches(self) -> Iterator[Mapping[str, np.ndarray]]:
    """Returns the batches from the position on."""
    source = self._batches_from_the_start()
    tensors = source.next_tensors(_PATIENCE_SECONDS, self._look_why)
    batch = tf.nest.map_structure(data_reading.to_numpy, tensors)
    if not self._batches:
      return itertools.chain([batch], source)
    self._pass_over(batch, source)
    return source

  def _look_why(self) -> None:
    """Looks for the reason why no batch has come yet."""
    logging.info('Waiting for the first batch of the training data')
    self.explain()

  def _pass_over(self, batch, source: InterruptibleIterator) -> None:
    """Goes through the batches before the position; one is read already."""
    started = logged = time.monotonic()
    for number in range(2, self._batches):
      source.next_tensors()
      if time.monotonic() - logged > _LOG_SECONDS:
        logged = time.monotonic()
        logging.info(
          'Passing over the training data: %d of %d batches, %.0f a second',
          number,
          self._batches,
          number / (logged - started),
        )
    self._last = next(source) if self._batches > 1 else batch
    checksum = _checksum(self._last)
    if self._checksum in (None, checksum):
      return
    problem = (
      f'batch {self._batches} of the training data is not what it was when the '
      'checkpoint was saved, although its files and settings are the same: the '
      'code of the task has changed, or its examples depend on more than the '
      'seed'
    )
    if not _accepted.get():
      raise UserError(
        f'{problem}. Restore the data, or pass --accept_config_change to '
        'continue with it as it is now'
      )
    logging.warning('%s. Continuing with the data as it is now', problem)

  def _batches_from_the_start(self) -> InterruptibleIterator:
    dataset, self._dataset = self._dataset, None
    if dataset is None:
      if self.rebuild is None:
        raise ValueError(
          'the dataset was read before: set TrainIterator.rebuild'
        )
      dataset = self.rebuild()
    return InterruptibleIterator(dataset, lambda seconds: self.stopped(seconds))

  @property
  def element_spec(self):
    """Shapes and dtypes of this process's part of a batch."""
    return {
      name: dataset_iterator.ArraySpec(
        dtype=spec.dtype.as_numpy_dtype, shape=tuple(spec.shape)
      )
      for name, spec in self._spec.items()
    }

  def save(self, filename) -> None:
    """Writes the position, as JSON, to a file; '.json' is added to its name."""
    checksum = self._checksum if self._last is None else _checksum(self._last)
    record = {
      'batches': self._batches,
      'checksum': checksum,
      'seed': self.seed,
      'identity': dict(self.identity()),
    }
    file = epath.Path(os.fspath(filename) + _SUFFIX)
    file.write_text(json.dumps(record, indent=1) + '\n')

  def restore(self, filename, step: int | None = None) -> None:
    """Goes to the position in a file.

    Args:
      filename: the name that it was saved with; if it is missing,
        TensorFlow's iterator state is read, which the real T5X saves.
      step: step of its checkpoint.

    Raises:
      UserError: the data has changed, and this is not accepted.
    """
    name = os.fspath(filename)
    if epath.Path(name + _SUFFIX).exists():
      self._restore_position(epath.Path(name + _SUFFIX))
    elif epath.Path(name + _STATE_SUFFIX).exists():
      self._restore_state(name, step)
    else:
      others = _positions(epath.Path(name).parent)
      if not others:
        raise FileNotFoundError(f'{name}{_SUFFIX}')
      # The number of data shards has changed; the identity reports it.
      self._restore_position(others[0])

  def _restore_position(self, file: epath.Path) -> None:
    record = read_position(file)
    changed = changes(record['identity'], self.identity())
    checksum = record['checksum']
    if changed:
      checksum = None
      _accept_or_refuse(
        f'the training data is not what it was: {changed}', record['batches']
      )
    self._go_to(record['batches'], checksum)

  def _restore_state(self, name: str, step: int | None) -> None:
    """Goes to the position whose batches follow a saved state of TensorFlow's.

    The state contains buffered data, which may differ from the present data. So
    it is used only to determine the position.
    """
    started = time.monotonic()
    try:
      expected = self._batches_of_state(name, 2)
    except Exception as error:  # TensorFlow raises many types
      reason = f'{type(error).__name__}: {error}'.splitlines()[0][:200]
      _accept_or_refuse(
        f'its state of the training data does not fit what is read ({reason})',
        step,
      )
      self._go_to(step, None)
      return
    source = self._batches_from_the_start()
    checksums = []
    with data_reading.reading('the training data'):
      for _ in range(step + len(expected)):
        checksums.append(_checksum(next(source)))
    logging.info(
      'Compared a saved state of the training data with %d batches: %.0f s',
      len(checksums),
      time.monotonic() - started,
    )
    # In a fine-tuned run the position is less than the step.
    for position in (step, *range(step)):
      if checksums[position : position + len(expected)] == expected:
        before = checksums[position - 1] if position else None
        self._go_to(position, before)
        return
    _accept_or_refuse(
      'the training data that it was saved with, by an older version or by the '
      'real T5X, is not what is read now',
      step,
    )
    self._go_to(step, None)

  def _batches_of_state(self, name: str, count: int) -> list[int]:
    """Returns the checksums of the batches that follow a saved state."""
    source = self._batches_from_the_start()
    state = tf.train.Checkpoint(ds=source.iterator)
    state.read(name).assert_consumed()
    return [_checksum(next(source)) for _ in range(count)]


def prepare_train_iter(
  train_iter: tf.data.Dataset | dataset_iterator.DatasetIterator,
  *,
  partitioner,
  checkpoint_cfg,
  data_layout,
) -> dataset_iterator.DatasetIterator:
  """Returns an iterator over a dataset's batches, with T5X's signature.

  Args:
    train_iter: what get_dataset_fn returned.
    partitioner: places the batches.
    checkpoint_cfg: unused: the position can always be saved.
    data_layout: defines the global batch.

  Raises:
    UserError: it is neither a dataset nor clu's iterator.
  """
  del checkpoint_cfg
  if isinstance(train_iter, tf.data.Dataset):
    return TrainIterator(train_iter, partitioner)
  if not isinstance(train_iter, dataset_iterator.DatasetIterator):
    raise UserError(
      f'get_dataset_fn returned unsupported type {type(train_iter)}: expected '
      'a tf.data.Dataset or a clu.data.DatasetIterator'
    )
  from t5x import sharded_iterators  # beside the engine

  shapes = {
    name: (data_layout.batch_size, *spec.shape[1:])
    for name, spec in train_iter.element_spec.items()
  }
  return sharded_iterators.OwnIterator(train_iter, partitioner, shapes)


def _accept_or_refuse(problem: str, batches: int | None) -> None:
  """Raises UserError, or warns if the change is accepted."""
  if not _accepted.get():
    raise UserError(
      f'{problem}; restore the data, give another MODEL_DIR, or pass '
      '--accept_config_change to continue with the present data, from its '
      f'batch {batches} on'
    )
  logging.warning(
    '%s. The run continues with the present data, from its batch %d on',
    problem,
    batches,
  )


def read_position(file: epath.Path) -> dict[str, Any]:
  """Returns the record of a position, see `TrainIterator.save`."""
  record = json.loads(file.read_text())
  return {
    'batches': int(record['batches']),
    'checksum': record['checksum'],
    'seed': record['seed'],
    'identity': dict(record['identity']),
  }


def saved_seed(folder: str) -> int | None:
  """Returns the data seed of a checkpoint, or None without one."""
  for file in _positions(epath.Path(folder) / 'dataset'):
    with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
      return read_position(file)['seed']
  return None


def _positions(folder: epath.Path) -> list[epath.Path]:
  """Returns the position files of all data shards and processes."""
  if not folder.is_dir():
    return []
  pattern = f'train_ds-*{_SUFFIX}'
  return sorted([*folder.glob(pattern), *folder.glob(f'process_*/{pattern}')])


def _checksum(batch: Mapping[str, np.ndarray]) -> int:
  """Returns the CRC-32 of a batch."""
  total = 0
  for name in sorted(batch):
    array = np.asarray(batch[name])
    head = f'{name} {array.dtype.name} {array.shape}'
    total = zlib.crc32(array.tobytes(), zlib.crc32(head.encode(), total))
  return total
