import logging

import pytest

from selective_t5x.config import changes as config_changes
from selective_t5x.errors import UserError

CONFIG = """
import __main__ as train_script
from t5x import models
from t5x import utils

BATCH_SIZE = 8
CHECKPOINT_PERIOD = 100
MODEL_DIR = '/home/me/results/run'
OUTER = %BATCH_SIZE
TRAIN_STEPS = 400
UNREAD = 1

train_script.train.model = @models.DecoderOnlyModel()
train_script.train.model_dir = %MODEL_DIR
train_script.train.total_steps = %TRAIN_STEPS
train/utils.DatasetConfig.batch_size = %OUTER
train/utils.DatasetConfig.task_feature_lengths = {'targets': %BATCH_SIZE}
utils.SaveCheckpointConfig.period = %CHECKPOINT_PERIOD
utils.create_learning_rate_scheduler.steps_per_cycle = %TRAIN_STEPS
"""


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'config.gin').write_text(CONFIG)
  (tmp_path / 'checkpoint_200').mkdir()
  (tmp_path / 'checkpoint_400').mkdir()
  return tmp_path


def check(folder, *changes, accepted=False):
  text = CONFIG
  for old, new in changes:
    assert old in text
    text = text.replace(old, new)
  config_changes.check(str(folder), text, accepted=accepted)


@pytest.mark.parametrize(
  'change',
  [
    ('TRAIN_STEPS = 400', 'TRAIN_STEPS = 500'),
    ('train.total_steps = %TRAIN_STEPS', 'train.relative_steps = 9'),
    ("'/home/me/results/run'", "'elsewhere'"),
    ('CHECKPOINT_PERIOD = 100', 'CHECKPOINT_PERIOD = 50'),
    ('Config.period = %CHECKPOINT_PERIOD', 'Config.period = 7'),
    ('UNREAD = 1', 'UNREAD = 2'),
    # Another spelling of the same.
    ('batch_size = %OUTER', 'batch_size = 8'),
    ('from t5x import models', 'from t5x import models as m'),
  ],
)
def test_what_may_change(folder, change):
  also = ('@models.', '@m.') if ' as m' in change[1] else ('\n', '\n')
  check(folder, change, also)


@pytest.mark.parametrize(
  'change, message',
  [
    (('BATCH_SIZE = 8', 'BATCH_SIZE = 9'), 'BATCH_SIZE is 8 there, 9 here'),
    (
      ('batch_size = %OUTER', 'batch_size = 9'),
      'train/DatasetConfig.batch_size is 8 there, 9 here',
    ),
    (
      ('@models.DecoderOnlyModel', '@models.EncoderDecoderModel'),
      r'train.model is @t5x.models.DecoderOnlyModel\(\) there, @t5x.models.Enc',
    ),
    (
      ('cycle = %TRAIN_STEPS', 'cycle = 400'),
      'steps_per_cycle is %TRAIN_STEPS there, 400 here',
    ),
    (
      ('train_script.train.model = ', 'train_script.train.other = '),
      r'train.model is @.* there, \(not set\) here; train.other is \(not set',
    ),
  ],
)
def test_a_change_is_refused_with_the_difference(folder, change, message):
  with pytest.raises(UserError, match=message) as error:
    check(folder, change)
  assert '\n' not in str(error.value)
  assert '--accept_config_change' in str(error.value)


def test_what_is_accepted_is_kept(folder, caplog):
  with caplog.at_level(logging.WARNING):
    check(folder, ('BATCH_SIZE = 8', 'BATCH_SIZE = 9'), accepted=True)
  assert 'BATCH_SIZE is 8 there, 9 here' in caplog.text
  assert (folder / 'config_until_400.gin').read_text() == CONFIG


def test_a_run_that_saved_nothing_can_be_mended(tmp_path):
  change = ('BATCH_SIZE = 8', 'BATCH_SIZE = 9')
  check(tmp_path, change)
  (tmp_path / 'config.gin').write_text(CONFIG)
  check(tmp_path, change)


TRACKED = """
from selective_t5x import trackers
from t5x import trainer

WRAPPED = @trainer.Trainer
train_script.train.trainer_cls = @trackers.tracked_trainer()
trackers.tracked_trainer.trainer_cls = %WRAPPED
trackers.tracked_trainer.trackers = [@trackers.WandB()]
trackers.WandB.project = 'selection'
"""
PLAIN = """
from t5x import trainer

train_script.train.trainer_cls = @trainer.Trainer
"""


def test_trackers_may_come_and_go_but_not_the_trainer_that_they_follow(
  tmp_path,
):
  (tmp_path / 'checkpoint_200').mkdir()
  other = TRACKED.replace("'selection'", "'elsewhere'")
  for there in (PLAIN, TRACKED):
    (tmp_path / 'config.gin').write_text(CONFIG + there)
    for here in (PLAIN, TRACKED, other):
      config_changes.check(str(tmp_path), CONFIG + here, accepted=False)
    another = TRACKED.replace('trainer.Trainer', 'trainer.Other')
    with pytest.raises(UserError, match='@t5x.trainer.Trainer there, .*Other'):
      config_changes.check(str(tmp_path), CONFIG + another, accepted=False)
