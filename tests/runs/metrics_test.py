import json
import math

import pytest
from clu import metric_writers

from selective_t5x.errors import UserError
from selective_t5x.runs.files import METRICS_FILE
from selective_t5x.runs.losses import LOSS
from selective_t5x.runs.metrics import read_metrics, read_run


def write_lines(folder, rows):
  folder.mkdir(parents=True, exist_ok=True)
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / METRICS_FILE).write_text(text)


def metrics_row(step, loss, **extra):
  return {'step': step, 'loss': loss, 'cross_ent_loss': loss, **extra}


def bind_factor(model_dir, value):
  model_dir.mkdir(parents=True, exist_ok=True)
  (model_dir / 'config.gin').write_text(
    'from t5x import models\n'
    f'FACTOR = \\\n    {value}\n'
    'models.DecoderOnlyModel.loss_normalizing_factor = %FACTOR\n'
  )


def test_a_step_written_twice_stands_once_and_the_later_value_wins(tmp_path):
  rows = [{'step': 2, 'loss': 5.0, 'accuracy': 0.5}, {'step': 1, 'loss': 9.0}]
  write_lines(tmp_path, [*rows, {'step': 2, 'loss': 4.0}])
  assert read_metrics(tmp_path) == [
    {'step': 1, 'loss': 9.0},
    {'step': 2, 'loss': 4.0, 'accuracy': 0.5},
  ]


def test_a_last_line_cut_off_by_a_kill_is_left_out(tmp_path):
  write_lines(tmp_path, [{'step': 1, 'loss': 9.0}])
  with open(tmp_path / METRICS_FILE, 'a') as f:
    f.write('{"step": 2, "lo')
  assert [r['step'] for r in read_metrics(tmp_path)] == [1]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
  write_lines(tmp_path, [{'step': 1}])
  path = tmp_path / METRICS_FILE
  path.write_text('oops\n' + path.read_text())
  with pytest.raises(UserError, match=r'metrics\.jsonl:1: not JSON'):
    read_metrics(tmp_path)


def test_no_metrics_is_an_error_that_names_the_folder(tmp_path):
  with pytest.raises(UserError, match=f'{tmp_path}: no metrics here'):
    read_metrics(tmp_path)


def test_tensorboard_events_are_read_where_there_are_no_json_lines(tmp_path):
  # The first process was killed after step 3, the second began at step 2.
  for steps in ((1, 2, 3), (3, 4)):
    writer = metric_writers.SummaryWriter(str(tmp_path))
    for step in steps:
      writer.write_scalars(step, {'loss': step / len(steps)})
    writer.write_scalars(steps[-1], {'accuracy': math.nan})
    writer.write_texts(steps[-1], {'config': 'a = 1'})
    writer.close()
  rows = read_metrics(tmp_path)
  assert [r['step'] for r in rows] == [1, 2, 3, 4]
  assert [r['loss'] for r in rows] == pytest.approx([1 / 3, 2 / 3, 1.5, 2.0])
  assert rows[3]['accuracy'] is None and 'config' not in rows[3]


@pytest.mark.parametrize(
  ('factor', 'expected'),
  [
    ("'NUM_REAL_TARGET_TOKENS'", 2.0),
    ('@losses.SpecialLossNormalizingFactor.NUM_REAL_TARGET_TOKENS', 2.0),
    ('None', 0.5),
    ('100', 50.0),
    ("'AVERAGE_PER_SEQUENCE'", None),
  ],
)
def test_loss_per_token_undoes_what_the_run_divides_by(
  tmp_path, factor, expected
):
  bind_factor(tmp_path, factor)
  row = {
    'step': 1,
    'loss': 2.5,
    'cross_ent_loss': 2.0,
    'loss_per_nonpadding_target_token': 0.5,
  }
  write_lines(tmp_path / 'train', [row])
  assert read_run(tmp_path).train[0][LOSS] == expected


def test_rows_without_a_loss_are_no_steps(tmp_path):
  rows = [{'step': 0, 'timing/compilation_seconds': 3.0}, metrics_row(10, 2.0)]
  write_lines(tmp_path / 'train', rows)
  assert [r['step'] for r in read_run(tmp_path).train] == [10]
