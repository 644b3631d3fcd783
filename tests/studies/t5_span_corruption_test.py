import json
import re

import pytest

from selective_t5x.config import files as config_files
from selective_t5x.studies import t5_span_corruption
from tests.support import fake_training


def test_the_last_line_has_both_losses_and_the_seeds(
  monkeypatch, tmp_path, capsys
):
  fake_training.install(monkeypatch)
  out = tmp_path / 'out'
  t5_span_corruption.main([f'--output_dir={out}', '--gin.TRAIN_STEPS=40'])
  said = capsys.readouterr().out
  figures = json.loads(said.splitlines()[-1])
  assert figures == json.loads((out / 't5_span_corruption.json').read_text())

  def mean_loss(variant):
    losses = [
      json.loads(path.read_text().splitlines()[-1])['loss']
      for path in out.glob(f'{variant}-seed*/training_eval/*/metrics.jsonl')
    ]
    assert len(losses) == 3
    return sum(losses) / 3

  assert figures == {
    't5_span_corruption': {
      'baseline_loss': pytest.approx(mean_loss('baseline')),
      'selective_loss': pytest.approx(mean_loss('selective')),
      'seeds': 3,
    }
  }
  assert 'paired t-test' in said


def test_dry_run_names_runs_that_differ_in_attention_alone(tmp_path, capsys):
  out = tmp_path / 'out'
  t5_span_corruption.main([f'--output_dir={out}', '--dry_run', '--seeds=2'])
  said = capsys.readouterr().out
  assert said.count('selective_t5x.main --run_mode=train') == 4
  _, _, differences = said.rpartition('seed1\'"\n')
  assert '\nATTENTION\n' in f'\n{differences}'
  path = config_files.search_path() / 'gin/attention/selective.gin'
  macros = re.findall(r'^(\w+) =', path.read_text(), re.MULTILINE)
  for line in differences.splitlines():
    assert (
      line.startswith('  ') or 'attention' in line.lower() or line in macros
    )
  assert not out.exists()
