"""Weights & Biases and trackio with their real packages: make test-trackers."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip('wandb')
pytest.importorskip('trackio')

from selective_t5x import trackers
from t5x import train
from tests.engine import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run with both trackers, stopped at step 2 and resumed to step 4."""
  folder = tmp_path_factory.mktemp('tracked')
  code = f"""
import sys
from tests.trackers.packages_test import train_until
train_until({str(folder / 'run')!r}, int(sys.argv[1]))
"""
  environment = os.environ | {
    'TRACKIO_DIR': str(folder / 'trackio'),
    'WANDB_MODE': 'online',  # The setting in the code wins.
    'WANDB_API_KEY': '',
    'WANDB_DATA_DIR': str(folder / 'wandb_data'),
    'WANDB_CACHE_DIR': str(folder / 'wandb_cache'),
  }
  for step in ('2', '4'):
    done = subprocess.run(
      [sys.executable, '-c', code, step],
      cwd=ROOT,
      env=environment,
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'gets no more metrics' not in done.stderr
  return folder


def train_until(folder, step):
  """Trains the tiny model in a folder; runs in a process of its own."""
  arguments = tiny.train_args(folder, total_steps=step)
  followers = [
    trackers.WandB(project='a_project', mode='offline', tags=['tiny']),
    trackers.Trackio(project='a_project'),
    trackers.JsonLines(),
  ]
  trainer_cls = trackers.tracked_trainer(arguments['trainer_cls'], followers)
  train.train(**(arguments | {'trainer_cls': trainer_cls}))


def _losses(folder):
  """Returns {step: train loss} as the run's own files have them."""
  lines = (folder / 'run/train/metrics.jsonl').read_text().splitlines()
  return {row['step']: row['loss'] for row in map(json.loads, lines)}


def _ids(folder):
  return json.loads((folder / 'run/trackers.json').read_text())


def _records(file):
  """Yields what a .wandb file holds: a log of LevelDB after 7 bytes."""
  data, position, part = file.read_bytes(), 7, b''
  while position < len(data):
    if 2**15 - position % 2**15 < 7:  # The rest of a block is padding.
      position += 2**15 - position % 2**15
      continue
    length = int.from_bytes(data[position + 4 : position + 6], 'little')
    kind = data[position + 6]  # 1: whole, 2: first, 3: middle, 4: last part.
    part += data[position + 7 : position + 7 + length]
    position += 7 + length
    if kind in (1, 4):
      yield part
      part = b''


def test_wandb_offline_has_both_parts_under_one_id(run):
  from wandb.proto import wandb_internal_pb2

  ids = _ids(run)
  files = sorted((run / 'run/wandb').glob('offline-run-*/*.wandb'))
  assert len(files) == 2
  losses, config = {}, {}
  for file in files:
    assert file.name == f'run-{ids["wandb /a_project"]}.wandb'
    for data in _records(file):
      record = wandb_internal_pb2.Record()
      record.ParseFromString(data)
      row = {
        '.'.join(item.nested_key) or item.key: json.loads(item.value_json)
        for item in record.history.item
      }
      if 'train/loss' in row:
        losses[row['step']] = row['train/loss']
      for update in (record.run.config.update, record.config.update):
        for item in update:
          name = '.'.join(item.nested_key) or item.key
          config[name] = json.loads(item.value_json)
  assert losses == pytest.approx(_losses(run))
  assert {'gin', 'operative_gin', 'seed', 'git', 'folder'} <= set(config)


def test_trackio_has_both_parts_in_one_run(run):
  import sqlite3

  name = _ids(run)['trackio /a_project']
  (database,) = (run / 'trackio').glob('*.db')
  with sqlite3.connect(database) as connection:
    rows = connection.execute('select run_name, step, metrics from metrics')
    rows = [(run_name, step, json.loads(m)) for run_name, step, m in rows]
    names = {
      row[0] for row in connection.execute('select run_name from configs')
    }
  assert {row[0] for row in rows} == names == {name}
  losses = {step: m['train/loss'] for _, step, m in rows if 'train/loss' in m}
  assert losses == pytest.approx(_losses(run))
