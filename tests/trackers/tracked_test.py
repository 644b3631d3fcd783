"""Training and evaluations with trackers, of files alone and of packages."""

import dataclasses
import functools
import json
import logging
import math

import gin
import numpy as np
import pytest
import seqio

from selective_t5x import trackers
from selective_t5x.errors import UserError
from selective_t5x.runs import metrics
from selective_t5x.trackers import parameters as parameters_of
from t5x import eval as eval_lib
from t5x import train, trainer, utils
from tests.engine import tiny
from tests.trackers.hub_test import Tracker


def _rows(folder):
  lines = (folder / 'trackers/metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def _merged(rows):
  by_step = {}
  for row in rows:
    by_step.setdefault(row['step'], {}).update(row)
  return by_step


def _args(folder, followers, **overrides):
  arguments = tiny.train_args(folder)
  wrapped = trackers.tracked_trainer(arguments['trainer_cls'], followers)
  return arguments | {'trainer_cls': wrapped} | overrides


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The folder of a run that was stopped at step 2 and resumed to step 4."""
  folder = tmp_path_factory.mktemp('tracked')
  followers = [trackers.JsonLines(), trackers.TensorBoard()]
  arguments = _args(
    folder,
    followers,
    checkpoint_cfg=utils.CheckpointConfig(
      save=utils.SaveCheckpointConfig(period=2, keep=None, save_dataset=True)
    ),
    infer_eval_dataset_cfg=dataclasses.replace(
      tiny.dataset_cfg('validation'),
      mixture_or_task_name=tiny.register_scored(),
    ),
    inference_evaluator_cls=functools.partial(
      seqio.Evaluator,
      logger_cls=[
        seqio.JSONLogger,
        functools.partial(trackers.Logger, trackers=followers),
      ],
    ),
  )
  train.train(**(arguments | {'total_steps': 2}))
  # A kill after step 2 leaves lines of steps that come again, and half a line.
  with open(folder / 'trackers/metrics.jsonl', 'a') as file:
    file.write('{"step": 3, "train/loss": 99.0}\n{"step": 4, "tra')
  train.train(**arguments)
  return folder


def test_json_lines_have_the_run_s_own_metrics_after_a_kill_too(run):
  rows = _rows(run)
  assert [row['step'] for row in rows] == sorted(row['step'] for row in rows)
  merged = _merged(rows)
  own = metrics.read_metrics(run / 'train')
  assert [row['step'] for row in own] == [1, 2, 3, 4]
  for row in own:
    for name, value in row.items():
      if name != 'step':
        assert merged[row['step']][f'train/{name}'] == pytest.approx(value)
  for row in metrics.read_metrics(run / f'training_eval/{tiny.TASK}'):
    name = f'training_eval/{tiny.TASK}/loss'
    assert merged[row['step']][name] == pytest.approx(row['loss'])
  scored = f'{tiny.TASK}_scored'
  lines = (run / f'inference_eval/{scored}-metrics.jsonl').read_text()
  evaluated = [json.loads(line) for line in lines.splitlines()]
  assert [row['step'] for row in evaluated] == [2, 4]
  for row in evaluated:
    name = f'inference_eval/{scored}/mean_score'
    assert merged[row['step']][name] == row['mean_score']


def test_tensorboard_has_the_same(run):
  rows = metrics.read_metrics(run / 'trackers/tensorboard')
  merged = _merged(_rows(run))
  assert [r['step'] for r in rows if 'train/loss' in r] == [1, 2, 3, 4]
  for row in rows:
    if 'train/loss' in row:
      expected = merged[row['step']]['train/loss']
      assert row['train/loss'] == pytest.approx(expected, rel=1e-6)


def test_the_parameters_say_what_runs(run):
  parameters = json.loads((run / 'trackers/parameters.json').read_text())
  assert parameters['folder'] == str(run)
  assert parameters['engine'] == 'embedded'
  assert {'git', 'packages', 'device', 'gin', 'settings'} <= set(parameters)


def test_settings_are_read_from_gin(tmp_path):
  gin.parse_config(
    'from __gin__ import dynamic_registration\n'
    'from t5x import train\n'
    'from t5x import utils\n'
    'RANDOM_SEED = 7\n'
    'train.train.random_seed = %RANDOM_SEED\n'
    "utils.DatasetConfig.task_feature_lengths = {'targets': 8}\n"
    'utils.DatasetConfig.batch_size = 4\n'
  )
  try:
    parameters = parameters_of.of_run(str(tmp_path))
  finally:
    gin.clear_config()
  assert parameters['seed'] == 7
  assert parameters['settings']['RANDOM_SEED'] == 7
  assert parameters['settings']['DatasetConfig.batch_size'] == 4
  assert (
    parameters['settings']['DatasetConfig.task_feature_lengths']
    == "{'targets': 8}"
  )
  assert 'RANDOM_SEED = 7' in parameters['gin']


def test_a_tracker_that_crashes_changes_nothing(run, tmp_path, caplog):
  with caplog.at_level(logging.WARNING):
    _, state = train.train(**_args(tmp_path, [Tracker(fails_at=2)]))
  warnings = [r for r in caplog.records if 'trackers.' in r.getMessage()]
  assert len(warnings) == 1
  for there, here in zip(
    metrics.read_metrics(run / 'train'),
    metrics.read_metrics(tmp_path / 'train'),
    strict=True,
  ):
    assert there['loss'] == here['loss']
  assert int(state.step) == 4


def test_evaluations_of_older_checkpoints_drop_no_metrics(run, tmp_path):
  constructor = trackers.tracked_evaluator(
    trainer.Trainer, [trackers.JsonLines()]
  )
  for step in (4, 2):
    eval_lib.evaluate(
      model=tiny.model(),
      dataset_cfg=tiny.dataset_cfg('validation'),
      restore_checkpoint_cfg=utils.RestoreCheckpointConfig(
        path=str(run / f'checkpoint_{step}'), mode='specific'
      ),
      partitioner=tiny.train_args('')['partitioner'],
      output_dir=str(tmp_path),
      inference_evaluator_cls=None,
      training_evaluator_cls=constructor,
      summarize_config_fn=lambda **_: None,
      train_eval_get_dataset_fn=functools.partial(
        utils.get_training_eval_datasets, eval_steps=2
      ),
    )
  name = f'training_eval/{tiny.TASK}/loss'
  assert [row['step'] for row in _rows(tmp_path) if name in row] == [4, 2]


def test_seqio_s_metrics_reach_the_trackers(tmp_path):
  tracker = Tracker()
  logger = trackers.Logger(str(tmp_path / 'inference_eval'), [tracker])
  logger(
    'a_task',
    3,
    {
      'score': seqio.metrics.Scalar(np.float32(0.5)),
      'nan': math.nan,
      'whole': 2,
      'sample': seqio.metrics.Text('text'),
      'array': seqio.metrics.Generic(np.zeros(3), None),
    },
    None,
    None,
    None,
  )
  ((run, writer),) = tracker.opened
  assert run.folder == str(tmp_path) and run.step is None
  (_, scalars), (_, texts) = writer.rows
  assert scalars.pop('inference_eval/a_task/nan') != 0
  assert scalars == {
    'inference_eval/a_task/score': 0.5,
    'inference_eval/a_task/whole': 2.0,
  }
  assert texts == {'inference_eval/a_task/sample': 'text'}


@pytest.mark.parametrize(
  ('cls', 'package'), [(trackers.WandB, 'wandb'), (trackers.Trackio, 'trackio')]
)
def test_a_missing_package_is_one_line(monkeypatch, cls, package):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(UserError) as error:
    cls()
  # gin adds the class; the command line prints the first line.
  assert str(error.value).splitlines()[0] == (
    f'trackers.{cls.__name__}: the package {package} is not installed: pip '
    "install 'selective_t5x[trackers]' (docs/trackers.md)"
  )


def test_an_unknown_mode_is_refused():
  with pytest.raises(UserError, match="mode = 'ofline': .*; nearest: offline"):
    trackers.WandB(mode='ofline')
