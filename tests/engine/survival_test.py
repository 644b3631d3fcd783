"""Runs that are stopped, broken checkpoints, data that is gone."""

import functools
import json
import logging
import os
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf

from selective_t5x.errors import Interrupted, RunError, UserError
from t5x import checkpoints, integrity, partitioning, train, utils
from tests.engine import tiny
from tests.support import smoke


class _Terminated(partitioning.PjitPartitioner):
  """Sends SIGTERM to its own process with the batch of one step."""

  def __init__(self, step):
    super().__init__(num_partitions=1)
    self._left = step

  def put_batch(self, batch):
    self._left -= 1
    if self._left == 0:
      os.kill(os.getpid(), signal.SIGTERM)
    return super().put_batch(batch)


def _args(model_dir, **overrides):
  """4 steps in one window of metrics, saved at its end alone."""
  save = utils.SaveCheckpointConfig(period=4, save_dataset=True)
  return tiny.train_args(
    model_dir,
    **{
      'checkpoint_cfg': utils.CheckpointConfig(save=save),
      'eval_period': 4,
      'stats_period': 4,
      **overrides,
    },
  )


def _metrics(model_dir):
  lines = (model_dir / 'train/metrics.jsonl').read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if not k.startswith('timing/')}
    for line in lines
  ]


def _assert_same(state, expected, atol=0.0):
  params, wanted = map(
    utils.flatten_dict_string_keys, (state.params, expected.params)
  )
  for name in wanted:
    np.testing.assert_allclose(
      params[name], wanted[name], rtol=0, atol=atol, err_msg=name
    )


@pytest.fixture(scope='module')
def whole_run(tmp_path_factory):
  model_dir = tmp_path_factory.mktemp('whole')
  _, state = train.train(**_args(model_dir))
  return model_dir, state


def test_sigterm_saves_the_step_and_the_window_goes_on(whole_run, tmp_path):
  before = signal.getsignal(signal.SIGTERM)
  for step in (1, 2):
    with pytest.raises(Interrupted, match=f'after step {step}; .*_{step}$'):
      # The second start takes one step more.
      train.train(**_args(tmp_path, partitioner=_Terminated(1)))
    assert checkpoints.all_steps(tmp_path)[-1] == step
    assert signal.getsignal(signal.SIGTERM) == before
  step, state = train.train(**_args(tmp_path))
  assert step == 4
  _assert_same(state, whole_run[1])
  assert _metrics(tmp_path) == _metrics(whole_run[0])


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """The folder of a run with checkpoints 0, 2 and 4."""
  folder = tmp_path_factory.mktemp('trained')
  train.train(**tiny.train_args(folder, total_steps=4, eval_period=4))
  return folder


@pytest.fixture
def two_checkpoints(trained, tmp_path):
  """A copy of it, which a test may break."""
  return shutil.copytree(trained, tmp_path, dirs_exist_ok=True)


def _break(checkpoint, how):
  file = max(
    checkpoint.rglob('*'), key=lambda f: f.is_file() * f.stat().st_size
  )
  content = bytearray(file.read_bytes())
  if how == 'flip':
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
  elif how == 'truncate':
    file.write_bytes(content[: len(content) // 2])
  else:
    file.unlink()


@pytest.mark.parametrize(
  'how, problem',
  smoke.first(
    [
      ('flip', 'has another checksum'),
      ('truncate', 'bytes in place of'),
      ('remove', 'is missing'),
    ]
  ),
)
def test_a_broken_checkpoint_is_passed_over(
  how, problem, two_checkpoints, caplog
):
  _break(two_checkpoints / 'checkpoint_4', how)
  with caplog.at_level(logging.WARNING):
    step, _ = train.train(**tiny.train_args(two_checkpoints, eval_period=4))
  assert step == 4
  (said,) = [r.message for r in caplog.records if 'Resuming from' in r.message]
  assert problem in said
  assert 'checkpoint_2; the unreadable one was renamed to' in said
  assert (two_checkpoints / 'broken_checkpoint_4').is_dir()
  assert checkpoints.all_steps(two_checkpoints)[-1] == 4


def test_without_another_checkpoint_nothing_is_touched(two_checkpoints):
  for name in ('checkpoint_0', 'checkpoint_2', 'checkpoint_4'):
    _break(two_checkpoints / name, 'truncate')
  before = sorted(two_checkpoints.rglob('*'))
  with pytest.raises(UserError, match='no other .*KEEP_CHECKPOINTS = 2'):
    train.train(**tiny.train_args(two_checkpoints))
  assert sorted(two_checkpoints.rglob('*')) == before


def test_a_broken_checkpoint_without_checksums(two_checkpoints, caplog):
  newest = two_checkpoints / 'checkpoint_4'
  (newest / integrity.FILE).unlink()
  (newest / 'state' / '_METADATA').write_text('{')
  with caplog.at_level(logging.WARNING):
    train.train(**tiny.train_args(two_checkpoints, eval_period=4))
  assert 'checkpoint_4 cannot be read' in caplog.text


def test_data_that_is_gone_is_one_line(tmp_path):
  gone = str(tmp_path / 'shard-00001')

  def get_dataset(*args):
    @tf.autograph.experimental.do_not_convert
    def read(batch):
      length = tf.strings.length(tf.io.read_file(gone))
      tokens = batch['decoder_target_tokens'] + 0 * length
      return batch | {'decoder_target_tokens': tokens}

    return utils.get_dataset(*args).map(read)

  with pytest.raises(RunError, match=f'the training data .*{gone}') as error:
    train.train(**_args(tmp_path / 'run', get_dataset_fn=get_dataset))
  assert '\n' not in str(error.value)


def _nan_batches(*numbers):
  """Returns a get_dataset_fn: the loss of these batches, from 0, is NaN."""

  def get_dataset(*args):
    @tf.autograph.experimental.do_not_convert
    def spoil(number, batch):
      factor = tf.where(tf.reduce_any(number == numbers), np.nan, 1.0)
      weights = tf.cast(batch['decoder_loss_weights'], tf.float32)
      return batch | {
        'decoder_loss_weights': weights * tf.cast(factor, tf.float32)
      }

    return utils.get_dataset(*args).enumerate().map(spoil)

  return get_dataset


def _skipping(limit):
  return functools.partial(
    tiny.train_args('')['trainer_cls'], max_skipped_steps=limit
  )


def test_steps_that_are_not_finite_change_nothing(tmp_path, whole_run):
  runs = {}
  for steps in (1, 2, 4):
    runs[steps] = train.train(
      **_args(
        tmp_path / f'{steps}',
        total_steps=steps,
        trainer_cls=_skipping(2),
        get_dataset_fn=_nan_batches(1, 2),
      )
    )
  assert runs[2][0] == 2
  _assert_same(runs[2][1], runs[1][1])
  (row,) = _metrics(tmp_path / '4')
  assert row['skipped_steps'] == 2 and np.isfinite(row['loss'])
  # The first of the two losses is that of the whole run's first step.
  assert 0.5 < row['loss'] / _metrics(whole_run[0])[0]['loss'] < 1.5


def test_skipping_changes_nothing_where_all_is_finite(tmp_path, whole_run):
  _, state = train.train(**_args(tmp_path, trainer_cls=_skipping(0)))
  # Another program, which may round elsewhere.
  _assert_same(state, whole_run[1], atol=1e-6)
  (row,) = _metrics(tmp_path)
  assert row.pop('skipped_steps') == 0
  assert [row] == [pytest.approx(of, rel=1e-5) for of in _metrics(whole_run[0])]


def test_too_many_skipped_steps_stop_the_run(tmp_path):
  with pytest.raises(train.NonFiniteLossError, match='2 steps had gradients'):
    train.train(
      **_args(
        tmp_path,
        trainer_cls=_skipping(1),
        get_dataset_fn=_nan_batches(1, 2),
      )
    )
  assert checkpoints.all_steps(tmp_path) == [0]
