"""Data of which nothing is left, and waits for data that a signal ends."""

import os
import signal
import threading
import time

import pytest
import seqio
import tensorflow as tf

from selective_t5x.errors import Interrupted, RunError, UserError
from t5x import (
  checkpoints,
  data_reading,
  partitioning,
  preemption,
  train,
  utils,
)
from tests.engine import tiny
from tests.support import smoke

_FEATURES = {'targets': seqio.Feature(seqio.ByteVocabulary(), add_eos=True)}


def _lines(count):
  def read(split, shuffle_files=False, seed=None):
    lines = [f'{split} {i:03}' for i in range(count)]
    return tf.data.Dataset.from_tensor_slices(
      {'targets': tf.constant(lines, tf.string)}
    )

  return seqio.FunctionDataSource(read, splits=('train', 'validation'))


def _filtered(dataset):
  return dataset.filter(lambda x: tf.equal(tf.strings.length(x['targets']), 0))


def _register(name, source, *preprocessors):
  if name not in seqio.TaskRegistry.names():
    seqio.TaskRegistry.add(
      name,
      source=source,
      preprocessors=[
        *preprocessors,
        seqio.preprocessors.tokenize,
        seqio.preprocessors.append_eos,
      ],
      output_features=_FEATURES,
    )
  return name


def _mixture(name, rates):
  if name not in seqio.MixtureRegistry.names():
    seqio.MixtureRegistry.add(name, list(rates.items()))
  return name


def _whole():
  return _register('empty_test_whole', _lines(40))


def _all_filtered_out():
  return _register('empty_test_filtered', _lines(40), _filtered)


def _no_example():
  return _register('empty_test_no_example', _lines(0))


def _all_rates_zero():
  return _mixture('empty_test_zero', {_whole(): 0.0})


def _one_task_filtered_out():
  rates = {_whole(): 1.0, _all_filtered_out(): 1.0}
  return _mixture('empty_test_half', rates)


_EMPTY = [
  (
    _all_filtered_out,
    'Task empty_test_filtered.* its preprocessors leave none',
  ),
  (_no_example, 'Task empty_test_no_example.* its source gives no example'),
  (_all_rates_zero, 'empty_test_zero: the rate of every .*empty_test_whole'),
  (_one_task_filtered_out, 'Task empty_test_filtered: nothing is left'),
]


def _cfg(name, split='train', pack=True, batch_size=4):
  cfg = tiny.dataset_cfg(split, batch_size=batch_size)
  cfg.mixture_or_task_name, cfg.pack = name, pack
  return cfg


@pytest.mark.parametrize(
  'make, message, pack',
  smoke.first(
    [(*_EMPTY[0], True), *((*e, False) for e in reversed(_EMPTY))], 2
  ),
)
def test_training_data_of_which_nothing_is_left(make, message, pack, tmp_path):
  started = time.monotonic()
  with pytest.raises(UserError, match=message) as error:
    train.train(
      **tiny.train_args(
        tmp_path, train_dataset_cfg=_cfg(make(), pack=pack), eval_period=0
      )
    )
  assert '\n' not in str(error.value)
  assert not os.listdir(tmp_path)
  assert time.monotonic() - started < 60
  assert not _readers()


def _readers():
  """Returns the threads that still wait for data."""
  return [t for t in threading.enumerate() if t.name == data_reading.THREAD]


def test_fewer_rows_than_a_batch_are_repeated(tmp_path):
  name = _register('empty_test_three', _lines(3))
  step, _ = train.train(
    **tiny.train_args(
      tmp_path,
      train_dataset_cfg=_cfg(name, pack=False),
      total_steps=1,
      eval_period=0,
    )
  )
  assert step == 1


def test_a_process_whose_share_is_empty_says_so(tmp_path):
  name = _register('empty_test_three', _lines(3))
  share = utils.get_dataset(
    _cfg(name), 3, 4, tiny.model().FEATURE_CONVERTER_CLS
  )
  with pytest.raises(RunError, match='gives no batch'):
    train.train(
      **tiny.train_args(
        tmp_path, get_dataset_fn=lambda *_: share, eval_period=0
      )
    )


@pytest.mark.parametrize('make, message', smoke.first(_EMPTY))
def test_evaluation_data_of_which_nothing_is_left(make, message, tmp_path):
  cfg = _cfg(make(), 'validation')
  with pytest.raises(UserError, match=message):
    train.train(**tiny.train_args(tmp_path, train_eval_dataset_cfg=cfg))
  assert checkpoints.all_steps(tmp_path) == []


def _endless_from(batch):
  """Returns a get_dataset_fn that gives no batch after so many."""

  def get_dataset(*args):
    dataset = utils.get_dataset(*args)
    nothing = dataset.filter(lambda _: False)
    return dataset.take(batch).concatenate(nothing)

  return get_dataset


def test_sigterm_in_the_wait_for_a_batch_saves(tmp_path):
  args = tiny.train_args(
    tmp_path, eval_period=0, stats_period=4, get_dataset_fn=_endless_from(3)
  )
  args['checkpoint_cfg'].save.period = 4

  class Alarm(partitioning.PjitPartitioner):
    left = 3

    def put_batch(self, batch):
      self.left -= 1
      if not self.left:
        threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
      return super().put_batch(batch)

  args['partitioner'] = Alarm(num_partitions=1)
  with pytest.raises(Interrupted, match='after step 3; .*checkpoint_3'):
    train.train(**args)
  assert not _readers()
  whole = tiny.train_args(tmp_path, eval_period=0, stats_period=4)
  whole['checkpoint_cfg'].save.period = 4
  # The data is whole again, and is the same up to there.
  whole['get_dataset_fn'] = lambda *args: utils.get_dataset(*args)
  with pytest.raises(UserError, match='get_dataset_fn is .*_endless_from'):
    train.train(**whole)


def test_sigterm_in_a_long_wait_of_an_evaluation_ends_it(tmp_path, monkeypatch):
  monkeypatch.setattr(preemption, 'LONG_WAIT_SECONDS', 0.5)

  def evaluation(*args):
    dataset = utils.get_training_eval_datasets(*args)[tiny.TASK]
    endless = dataset.take(1).repeat().filter(lambda _: False)
    return {tiny.TASK: dataset.take(1).concatenate(endless)}

  args = tiny.train_args(
    tmp_path,
    train_eval_get_dataset_fn=evaluation,
    run_eval_before_training=True,
  )
  eval_fn = args['model'].eval_fn

  def alarm(*batch):
    """Rings when the evaluation step is traced, for its first batch."""
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    return eval_fn(*batch)

  monkeypatch.setattr(args['model'], 'eval_fn', alarm)
  with pytest.raises(Interrupted, match='step 0; .*from checkpoint_0'):
    train.train(**args)
  assert not _readers()


class _Alarm(Exception):
  pass


def test_a_signal_ends_the_wait_for_an_element():
  endless = tf.data.Dataset.range(3).repeat().filter(lambda x: x < 0)
  iterator = data_reading.InterruptibleIterator(endless)

  def handler(*_):
    raise _Alarm

  before = signal.signal(signal.SIGALRM, handler)
  signal.setitimer(signal.ITIMER_REAL, 0.5)
  try:
    with pytest.raises(_Alarm):
      next(iterator)
  finally:
    signal.signal(signal.SIGALRM, before)
  assert not _readers()


def test_stopped_ends_the_wait_for_an_element():
  endless = tf.data.Dataset.range(3).repeat().filter(lambda x: x < 0)
  iterator = data_reading.InterruptibleIterator(endless, lambda s: s > 0.5)
  with pytest.raises(data_reading.Stopped):
    next(iterator)
  assert not _readers()


def test_elements_are_those_of_the_dataset():
  dataset = tf.data.Dataset.range(5).map(lambda x: {'a': x, 'b': [x, x]})
  elements = list(data_reading.InterruptibleIterator(dataset))
  assert [int(e['a']) for e in elements] == [0, 1, 2, 3, 4]
  assert elements[3]['b'].tolist() == [3, 3]
  assert list(data_reading.InterruptibleIterator(dataset.take(0))) == []


def test_an_error_of_the_pipeline_is_raised():
  dataset = tf.data.TFRecordDataset('/nowhere/file')
  with pytest.raises(tf.errors.NotFoundError, match='/nowhere/file'):
    next(data_reading.InterruptibleIterator(dataset))
