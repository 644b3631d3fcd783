import json
import pathlib
import re

import pytest

from selective_t5x import quickstart
from selective_t5x.config import files as config_files
from tests.report.report_test import Checker
from tests.support import fake_training


@pytest.fixture
def fake(monkeypatch):
  fake_training.install(monkeypatch)


def last_loss(folder):
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return json.loads(lines[-1])['loss']


def test_one_folder_one_page_and_json_as_the_last_line(fake, tmp_path, capsys):
  out = tmp_path / 'out'
  quickstart.main([f'--output_dir={out}', '--gin.TRAIN_STEPS=40'])
  said = capsys.readouterr().out
  figures = json.loads(said.splitlines()[-1])
  assert figures == json.loads((out / 'quickstart.json').read_text())
  assignment = figures['variable_assignment']
  for variant in ('baseline', 'selective'):
    folder = out / 'variable_assignment' / f'{variant}-seed0' / 'training_eval'
    for task, name in (('', 'accuracy'), ('_ood', 'ood_accuracy')):
      accuracy = 1 / last_loss(folder / f'variable_assignment{task}')
      assert assignment[f'{variant}_{name}'] == pytest.approx(accuracy)
    folder = out / 'wikipedia_sample_lm' / f'{variant}-seed0' / 'training_eval'
    loss = last_loss(folder / 'wikipedia_sample_lm')
    assert figures['wikipedia_sample_lm'][f'{variant}_loss'] == loss
  # Two cells of each variant, of four windows.
  windows = 0.5 + 0.75
  assert figures['train_minutes'] == pytest.approx(2 * 4 * windows / 60)
  assert figures['engine'] == 'embedded'
  assert 'One seed: no claim about significance.' in said
  assert (out / 'table.txt').read_text() in said
  shown = ''.join(Checker((out / 'report.html').read_text()).shown)
  for name in quickstart.EXPERIMENTS:
    assert name in shown
    assert (out / name / 'learning_curves.png').exists()


def test_dry_run_names_the_gin_files_of_the_suite(capsys, tmp_path):
  quickstart.main([f'--output_dir={tmp_path / "out"}', '--dry_run'])
  said = capsys.readouterr().out
  assert said.count('selective_t5x.main --run_mode=train') == 4
  for name in quickstart.EXPERIMENTS:
    path = f'gin/experiments/{name}.gin'
    assert path in said
    assert (config_files.search_path() / path).exists()
  assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_the_real_thing_at_a_tiny_size(commands, tmp_path):
  def run():
    flags = [f'--output_dir={tmp_path}', '--gin_file=gin/test/tiny.gin']
    done = commands.run('selective_t5x.quickstart', flags, pathlib.Path.cwd())
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])

  figures = run()
  losses = figures['wikipedia_sample_lm']
  assert 6 < losses['baseline_loss'] < 10 and 6 < losses['selective_loss'] < 10
  assert set(figures['variable_assignment']) == {
    f'{variant}_{name}'
    for variant in ('baseline', 'selective')
    for name in ('accuracy', 'ood_accuracy')
  }
  assert figures['train_minutes'] > 0
  (data,) = re.findall(
    'id="masking-data">(.*?)</script>', (tmp_path / 'report.html').read_text()
  )
  assert [row['model'] for row in json.loads(data)] == [
    f'{name}, selective' for name in quickstart.EXPERIMENTS
  ]
  # All is finished: started again it says the same, at once.
  assert run() == figures
