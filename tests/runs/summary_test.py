import json
import os
import subprocess
import sys

import pytest

from selective_t5x.runs.files import write_json
from selective_t5x.runs.record import write_peak_memory
from selective_t5x.runs.summary import write_summary
from tests.runs.metrics_test import bind_factor, metrics_row, write_lines


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
          'attention/live_keys_layer_0': step,
          'attention/live_keys_layer_1': 2 * step,
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
  write_json(
    tmp_path / 'run.json',
    {'runs': [{'run_mode': 'train', 'engine': 'embedded', 'seed': 3}]},
  )
  write_peak_memory(tmp_path)
  write_json(tmp_path / 'costs.json', {'flops_per_step': 5, 'step_bytes': None})
  summary = write_summary(tmp_path)
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
  assert summary['live_keys'] == 90  # of the last window
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


def test_reading_results_imports_neither_jax_nor_tensorflow():
  code = (
    'import sys, selective_t5x.runs.summary\n'
    'assert not {"jax", "tensorflow"} & set(sys.modules), "heavy import"'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
