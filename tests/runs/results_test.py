import json
import math
import os
import shlex
import subprocess
import sys

import pytest
from clu import metric_writers

from selective_t5x.errors import UserError
from selective_t5x.runs import results


def write_lines(folder, rows):
  folder.mkdir(parents=True, exist_ok=True)
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / results.METRICS_FILE).write_text(text)


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
  assert results.read_metrics(tmp_path) == [
    {'step': 1, 'loss': 9.0},
    {'step': 2, 'loss': 4.0, 'accuracy': 0.5},
  ]


def test_a_last_line_cut_off_by_a_kill_is_left_out(tmp_path):
  write_lines(tmp_path, [{'step': 1, 'loss': 9.0}])
  with open(tmp_path / results.METRICS_FILE, 'a') as f:
    f.write('{"step": 2, "lo')
  assert [r['step'] for r in results.read_metrics(tmp_path)] == [1]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
  write_lines(tmp_path, [{'step': 1}])
  path = tmp_path / results.METRICS_FILE
  path.write_text('oops\n' + path.read_text())
  with pytest.raises(UserError, match=r'metrics\.jsonl:1: not JSON'):
    results.read_metrics(tmp_path)


def test_no_metrics_is_an_error_that_names_the_folder(tmp_path):
  with pytest.raises(UserError, match=f'{tmp_path}: no metrics here'):
    results.read_metrics(tmp_path)


def test_tensorboard_events_are_read_where_there_are_no_json_lines(tmp_path):
  # The first process was killed after step 3, the second began at step 2.
  for steps in ((1, 2, 3), (3, 4)):
    writer = metric_writers.SummaryWriter(str(tmp_path))
    for step in steps:
      writer.write_scalars(step, {'loss': step / len(steps)})
    writer.write_scalars(steps[-1], {'accuracy': math.nan})
    writer.write_texts(steps[-1], {'config': 'a = 1'})
    writer.close()
  rows = results.read_metrics(tmp_path)
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
  assert results.read_run(tmp_path).train[0][results.LOSS] == expected


def test_rows_without_a_loss_are_no_steps(tmp_path):
  rows = [{'step': 0, 'timing/compilation_seconds': 3.0}, metrics_row(10, 2.0)]
  write_lines(tmp_path / 'train', rows)
  assert [r['step'] for r in results.read_run(tmp_path).train] == [10]


def test_summary_holds_last_and_best_of_every_task(tmp_path):
  bind_factor(tmp_path, "'NUM_REAL_TARGET_TOKENS'")
  speeds = {20: 1.0, 40: 4.0, 60: 5.0}
  write_lines(
    tmp_path / 'train',
    [
      metrics_row(
        step,
        3.0,
        **{
          'timing/seconds': 20 / s,
          'timing/steps_per_second': s,
          'timing/target_tokens_per_second': 100 * s,
          # The loss may be of fewer tokens than there are.
          'non_padding_fraction/decoder': step / 100,
          'non_padding_fraction/loss_weights': 0.01,
        },
      )
      for step, s in speeds.items()
    ],
  )
  losses = {'one': [3.0, 1.0, 2.0], 'two': [None, 6.0, 5.0]}
  for task, values in losses.items():
    rows = [
      metrics_row(20 * (i + 1), v, **{'timing/seconds': 0.5})
      for i, v in enumerate(values)
    ]
    write_lines(tmp_path / 'training_eval' / task, rows)
  (tmp_path / 'model-info.txt').write_text(
    'Variable a size 7 shape (7)\nTotal number of parameters: 1234\n'
  )
  results.write_json(
    tmp_path / 'run.json',
    {'runs': [{'run_mode': 'train', 'engine': 'embedded', 'seed': 3}]},
  )
  results.write_peak_memory(tmp_path)
  results.write_json(
    tmp_path / 'costs.json', {'flops_per_step': 5, 'step_bytes': None}
  )
  summary = results.write_summary(tmp_path)
  assert summary == json.loads((tmp_path / 'summary.json').read_text())
  assert summary['steps'] == 60
  assert summary['parameters'] == 1234
  assert (summary['engine'], summary['seed']) == ('embedded', 3)
  assert summary['steps_per_second'] == pytest.approx(60 / (20 + 5 + 4))
  assert summary['train_seconds'] == pytest.approx(20 + 5 + 4)
  # 20 steps of 100 tokens in each window, of which 20, 40 and 60 %.
  tokens = 20 * (20 + 40 + 60)
  assert summary['tokens_per_second'] == pytest.approx(tokens / (20 + 5 + 4))
  assert (summary['flops_per_step'], summary['step_bytes']) == (5, None)
  # More than Python, less than this machine.
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  assert 2**23 < summary['peak_rss_bytes'] < memory
  assert summary['evaluation_seconds'] == pytest.approx(3.0)
  steps = {
    task: {name: row['step'] for name, row in rows.items()}
    for task, rows in summary['training_eval'].items()
  }
  assert steps == {
    'one': {'last': 60, 'best': 40},
    'two': {'last': 60, 'best': 60},
  }


def test_json_is_strict_and_an_old_file_survives_a_failed_write(tmp_path):
  path = tmp_path / 'deep' / 'a.json'
  results.write_json(path, {'a': [math.nan, math.inf, (1.5, 'x')]})
  assert json.loads(path.read_text()) == {'a': [None, None, [1.5, 'x']]}
  with pytest.raises(TypeError):
    results.write_json(path, {'a': object()})
  assert json.loads(path.read_text()) == {'a': [None, None, [1.5, 'x']]}
  assert [p.name for p in path.parent.iterdir()] == ['a.json']


def test_each_start_adds_a_run(tmp_path):
  results.write_run_record(tmp_path, run_mode='train', seed=7)
  results.write_run_record(tmp_path, run_mode='eval', seed=None)
  runs = json.loads((tmp_path / 'run.json').read_text())['runs']
  assert [r['run_mode'] for r in runs] == ['train', 'eval']
  first = runs[0]
  assert first['seed'] == 7
  assert first['engine'] in ('embedded', 't5x')
  assert {'jax', 'flax', 'selective_t5x'} <= first['packages'].keys()
  assert first['device']['count'] >= 1 and first['device']['kind']
  assert first['command'] == shlex.join(sys.orig_argv)


def test_a_package_below_some_other_checkout_has_no_commit(tmp_path):
  subprocess.run(['git', 'init', '-q', str(tmp_path)], check=True)
  (tmp_path / '__init__.py').touch()
  assert results._git_state(tmp_path) is None


def test_reading_results_imports_neither_jax_nor_tensorflow():
  code = (
    'import sys, selective_t5x.runs.results as r\n'
    'assert not {"jax", "tensorflow"} & set(sys.modules), "heavy import"'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
