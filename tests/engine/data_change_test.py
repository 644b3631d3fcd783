"""Resuming where the training data, or its settings, are not what they were."""

import dataclasses
import functools
import itertools
import logging
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
import tensorflow as tf

from selective_t5x.errors import UserError
from t5x import (
  checkpoints,
  integrity,
  metrics,
  partitioning,
  train,
  train_iterator,
)
from tests.engine import tiny
from tests.support import smoke

_FEATURES = {'targets': seqio.Feature(seqio.ByteVocabulary(), add_eos=True)}
_numbers = itertools.count()


class _Recording(partitioning.PjitPartitioner):
  """Keeps the batches that it puts on the devices."""

  def __init__(self):
    super().__init__(num_partitions=1)
    self.batches = []

  def put_batch(self, batch):
    self.batches.append(batch)
    return super().put_batch(batch)


def _register(source, *preprocessors, name=None, **task):
  """Adds a task of lines of text; returns its name."""
  name = name or f'lines_{next(_numbers)}'
  if name in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove(name)
  seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[
      *preprocessors,
      seqio.preprocessors.tokenize,
      seqio.preprocessors.append_eos,
    ],
    output_features=_FEATURES,
    **task,
  )
  return name


def _named(dataset):
  return dataset.map(lambda line: {'targets': line})


@pytest.fixture
def text(tmp_path):
  """A file of lines, and the name of the task that reads it."""
  file = tmp_path / 'novel.txt'
  file.write_text(''.join(f'line {i:03}\n' for i in range(64)))
  source = seqio.TextLineDataSource({'train': str(file)})
  return file, _register(source, _named)


def _model():
  """A model whose step takes no time to compile: here only the data counts."""

  def loss_fn(params, batch, dropout_rng):
    del dropout_rng
    loss = sum(0.0 * jnp.sum(x) for x in jax.tree.leaves(params))
    loss += jnp.mean(batch['decoder_target_tokens'])
    return loss, {'loss': metrics.AveragePerStep(total=loss)}

  model = tiny.model()
  model.loss_fn = loss_fn
  return model


def _args(folder, task, total_steps=4, **changes):
  cfg = dataclasses.replace(
    tiny.dataset_cfg(), mixture_or_task_name=task, **changes
  )
  return tiny.train_args(
    folder,
    model=_model(),
    train_dataset_cfg=cfg,
    total_steps=total_steps,
    partitioner=_Recording(),
    eval_period=0,
    stats_period=4,
  )


def _batches(args):
  """Trains; returns the batches that it read."""
  train.train(**args)
  return args['partitioner'].batches


def _read(args, count=4):
  """Returns the first batches of a run's data, without a run."""
  dataset = train.utils.get_dataset(
    args['train_dataset_cfg'], 0, 1, args['model'].FEATURE_CONVERTER_CLS
  )
  return list(itertools.islice(dataset.as_numpy_iterator(), count))


def _assert_equal(batches, expected):
  assert len(batches) == len(expected)
  for batch, other in zip(batches, expected, strict=True):
    assert batch.keys() == other.keys()
    for name in batch:
      np.testing.assert_array_equal(batch[name], other[name])


def test_a_checkpoint_holds_nothing_of_the_data(text, tmp_path):
  lines = [f'secret {i:03}' for i in range(64)]
  secret = seqio.FunctionDataSource(
    lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(
      {'targets': lines}
    ),
    splits=('train',),
    num_input_examples={'train': 64},  # seqio keeps few examples in memory.
  )
  run = tmp_path / 'run'
  _batches(_args(run, _register(secret), total_steps=2))
  files = [f for f in (run / 'checkpoint_2' / 'dataset').rglob('*')]
  content = b''.join(file.read_bytes() for file in files if file.is_file())
  assert b'secret' not in content
  assert b'"batches": 2' in content and len(content) < 4096
  # Nor tokens: bytes are the ids less 3.
  as_ids = np.array([ord(c) + 3 for c in 'secret'], np.int32).tobytes()
  assert as_ids not in content


def test_a_file_that_has_changed_is_refused(text, tmp_path):
  file, task = text
  run = tmp_path / 'run'
  _batches(_args(run, task, total_steps=2))
  file.write_text(file.read_text().replace('line', 'lime'))
  with pytest.raises(UserError, match=r'file novel.txt is 576 bytes.* there, '):
    train.train(**_args(run, task))
  assert checkpoints.all_steps(run) == [0, 2]


def test_a_file_that_was_moved_or_touched_is_not(text, tmp_path):
  file, task = text
  run = tmp_path / 'run'
  whole = _read(_args(run, task))
  _batches(_args(run, task, total_steps=2))
  os.utime(file, (1, 1))
  elsewhere = tmp_path / 'elsewhere' / 'novel.txt'
  elsewhere.parent.mkdir()
  file.rename(elsewhere)
  source = seqio.TextLineDataSource({'train': str(elsewhere)})
  _register(source, _named, name=task)
  _assert_equal(_batches(_args(run, task)), whole[2:])


def _changed(text, how):
  """Returns the settings of a run with something else."""
  other = {
    'batch size': {'batch_size': 8},
    'length': {'task_feature_lengths': {'targets': 12}},
    'packing': {'pack': False},
    'seed': {'seed': 7},
  }
  if how != 'task':
    return text[1], other[how]
  source = seqio.TextLineDataSource({'train': str(text[0])})
  upper = functools.partial(_cased, function=tf.strings.upper)
  return _register(source, _named, upper), {}


def _cased(dataset, function):
  return dataset.map(lambda x: {'targets': function(x['targets'])})


@pytest.mark.parametrize(
  'how, message',
  smoke.first(
    [
      ('task', r'preprocessor 2 is .* there, _cased\(function=.*upper'),
      ('batch size', 'batch_size is 4 there, 8 here'),
      ('length', "{'targets': 16} there, {'targets': 12} here"),
      ('packing', 'pack is True there, False here'),
      ('seed', 'seed is 0 there, 7 here'),
    ]
  ),
)
def test_other_settings_are_refused_and_an_accepted_change_goes_on(
  how, message, text, tmp_path, caplog
):
  run = tmp_path / 'run'
  _batches(_args(run, text[1], total_steps=2))
  task, changes = _changed(text, how)
  with pytest.raises(UserError, match=message) as error:
    train.train(**_args(run, task, **changes))
  assert '\n' not in str(error.value)
  assert '--accept_config_change' in str(error.value)
  with train_iterator.changes_accepted(), caplog.at_level(logging.WARNING):
    batches = _batches(_args(run, task, **changes))
  assert 'with the present data, from its batch 2' in caplog.text
  # As a run that had these settings from the beginning.
  whole = _read(_args(run, task, **changes))
  _assert_equal(batches, whole[2:])
  # What was accepted is what the next start compares with.
  _batches(_args(run, task, total_steps=5, **changes))


_word = {'is': 'old'}  # What a global is, nobody sees from outside.


def _drifting(split, shuffle_files=False, seed=None):
  return tf.data.Dataset.from_tensor_slices(
    {'targets': [f'{_word["is"]} {i:03}' for i in range(64)]}
  )


def test_examples_that_are_others_without_a_word_are_refused(
  tmp_path, caplog, monkeypatch
):
  task = _register(seqio.FunctionDataSource(_drifting, splits=('train',)))
  run = tmp_path / 'run'
  _batches(_args(run, task, total_steps=2))
  monkeypatch.setitem(_word, 'is', 'new')
  with pytest.raises(UserError, match='batch 2 of the training data is not'):
    train.train(**_args(run, task))
  with train_iterator.changes_accepted(), caplog.at_level(logging.WARNING):
    _batches(_args(run, task))
  assert 'Continuing with the data as it is now' in caplog.text


def test_without_a_seed_the_order_goes_on(text, tmp_path, monkeypatch):
  clock = itertools.count(1000)
  monkeypatch.setattr('time.time', lambda: float(next(clock)))
  run = tmp_path / 'run'
  first = _batches(_args(run, text[1], total_steps=2, seed=None))
  record = train_iterator.read_position(
    run / 'checkpoint_2/dataset/train_ds-000-of-001.json'
  )
  assert record['seed'] >= 1000 and record['identity']['seed'] == 'None'
  then = _batches(_args(run, text[1], seed=None))
  seed = train_iterator.saved_seed(run / 'checkpoint_4')
  _assert_equal(first + then, _read(_args(run, text[1], seed=seed)))


def _as_an_older_version_saved_it(folder, args, batches):
  """Puts TensorFlow's own state in the place of a checkpoint's position."""
  integrity_file = folder / integrity.FILE
  integrity_file.unlink()
  (position,) = (folder / 'dataset').glob('*.json')
  dataset = train.utils.get_dataset(
    args['train_dataset_cfg'], 0, 1, args['model'].FEATURE_CONVERTER_CLS
  )
  iterator = iter(dataset)
  for _ in range(batches):
    next(iterator)
  tf.train.Checkpoint(ds=iterator).write(str(position.with_suffix('')))
  position.unlink()


@pytest.mark.parametrize('batches', smoke.first([2, 1]))
def test_a_state_of_an_older_version_goes_on(batches, text, tmp_path):
  run = tmp_path / 'run'
  args = _args(run, text[1])
  whole = _read(args)
  _batches(_args(run, text[1], total_steps=2))
  _as_an_older_version_saved_it(run / 'checkpoint_2', args, batches)
  _assert_equal(
    _batches(_args(run, text[1], total_steps=3)), whole[batches:][:1]
  )
  # Saved again it is a position.
  _assert_equal(_batches(_args(run, text[1])), whole[batches:][1:2])


def test_a_state_of_other_data_is_refused(text, tmp_path, caplog):
  file, task = text
  run = tmp_path / 'run'
  args = _args(run, task)
  _batches(_args(run, task, total_steps=2))
  _as_an_older_version_saved_it(run / 'checkpoint_2', args, 2)
  file.write_text(file.read_text().replace('line', 'lime'))
  with pytest.raises(UserError, match='by an older version .*--accept_config'):
    train.train(**_args(run, task))
  # Of another pipeline altogether.
  with pytest.raises(UserError, match='does not fit what is read'):
    train.train(**_args(run, task, pack=False))
  with train_iterator.changes_accepted():
    batches = _batches(_args(run, task))
  _assert_equal(batches, _read(_args(run, task))[2:])


def test_another_number_of_data_shards_is_refused(text, tmp_path):
  run = tmp_path / 'run'
  _batches(_args(run, text[1], total_steps=2))
  (run / 'checkpoint_2' / integrity.FILE).unlink()
  folder = run / 'checkpoint_2' / 'dataset'
  file = folder / 'train_ds-000-of-001.json'
  shard = folder / 'process_0-of-2' / 'train_ds-000-of-002.json'
  shard.parent.mkdir()
  shard.write_text(
    file.read_text().replace('"data shards": "1"', '"data shards": "2"')
  )
  file.unlink()
  with pytest.raises(UserError, match='data shards is 2 there, 1 here'):
    train.train(**_args(run, text[1]))
