"""The page on what models forget."""

import json

import pytest

from selective_t5x.report import forgetting as measures
from selective_t5x.studies import forgetting
from tests.report.masking_viewer_test import masked
from tests.support import fake_training


def test_the_page_has_tables_and_pictures_of_both_models(
  monkeypatch, tmp_path, capsys
):
  fake_training.install(monkeypatch)
  asked = []

  def rows_of(checkpoint, count):
    asked.append((checkpoint.rpartition('/')[2], count))
    return [masked(length=40, layers=2)]

  def compare(*args, **kwargs):
    result = run(*args, **kwargs)
    for name in ('selective', 'selective_memory_loss'):
      for step in (50, 100):
        (tmp_path / f'{name}-seed0' / f'checkpoint_{step}').mkdir()
    return result

  run = forgetting.compare.compare
  monkeypatch.setattr(forgetting.compare, 'compare', compare)
  monkeypatch.setattr(forgetting, 'rows_of', rows_of)
  forgetting.main([f'--output_dir={tmp_path}', '--examples=5'])
  assert asked[:3] == [
    ('selective-seed0', 5),
    ('checkpoint_50', 8),
    ('checkpoint_100', 8),
  ]
  last = json.loads(capsys.readouterr().out.splitlines()[-1])
  rows = [masked(length=40, layers=2)]
  ranks = [layer['rank_99'] for layer in measures.ranks(rows)]
  assert last['selective_memory_loss']['rank_99'] == ranks
  assert last['selective']['masked'] == measures.gone(rows)['masked']
  page = (tmp_path / 'forgetting.md').read_text()
  for name in ('training', 'kinds', 'ranks'):
    assert f'({name}.png)' in page
    assert (tmp_path / f'{name}.png').read_bytes().startswith(b'\x89PNG')
  assert page.count('| layer 1') == 2 or page.count('layer 1 |') == 2
  saved = json.loads((tmp_path / 'forgetting.json').read_text())
  assert list(saved['models']['selective']['steps']) == ['50', '100']
  cell = json.loads((tmp_path / 'selective-seed0' / 'cell.json').read_text())
  assert cell['bindings']['KEEP_CHECKPOINTS'] == 'None'


def test_dry_run_names_the_runs(tmp_path, capsys):
  forgetting.main([f'--output_dir={tmp_path}', '--dry_run'])
  said = capsys.readouterr().out
  assert said.count('selective_t5x.main --run_mode=train') == 2


@pytest.mark.slow
def test_a_tiny_page_of_trained_models(tmp_path, capsys):
  forgetting.main(
    [
      f'--output_dir={tmp_path}',
      '--gin_file=gin/test/tiny.gin',
      '--gin.CHECKPOINT_PERIOD=2',
      '--gin.EVAL_PERIOD=2',
      "--gin.TASK_FEATURE_LENGTHS={'targets': 48}",
      '--gin.MAX_LENGTH=48',
      '--examples=2',
      '--early_examples=1',
    ]
  )
  last = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert last.keys() == {'selective', 'selective_memory_loss'}
  saved = json.loads((tmp_path / 'forgetting.json').read_text())
  of = saved['models']['selective']
  assert list(of['steps']) == ['0', '2', '4'] and of['kinds']
  assert 0 <= of['steps']['4']['masked'][0] <= 1
  assert 1 <= of['ranks'][0]['rank_99'] <= 46
  assert (tmp_path / 'kinds.png').exists()
