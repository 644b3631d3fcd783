"""What the study of pruned caches concludes from its searches."""

import json

import pytest

from selective_t5x.studies import pruning
from tests.support import fake_training

FACTORS = (1, 2, 4, 8)


def searched(tuning, report):
  """A finished search with these losses at FACTORS."""
  path = [
    {
      'budgets': [16 // factor] * 2,
      'memory_factor': float(factor),
      'tuning_loss': a,
      'report_loss': b,
    }
    for factor, a, b in zip(FACTORS, tuning, report, strict=True)
  ]
  return {'settings': {'context': 16}, 'path': path, 'finished': True}


def searches(gain=1.0):
  """The baseline's loss is 5 on the tuning batches and 6 on the others."""
  rivals = dict.fromkeys(
    pruning.RIVALS, searched([5, 5.01, 5.04, 5.06], [6, 6.01, 6.08, 6.02])
  )
  own = searched([5 - gain, 4.02, 4.5, 4.9], [6 - gain, 5.01, 5.9, 6.01])
  return {**rivals, 'selective': own, 'selective_memory_loss': own}


def test_a_factor_counts_where_both_splits_hold():
  figures = pruning.summary([searches()])
  # The baseline's own: 8 is over 5.05 where it was tuned, 4 over 6.06.
  rivals = dict.fromkeys(pruning.RIVALS, 2.0)
  own = ('selective', 'selective_memory_loss')
  assert figures == {
    'context': 16,
    'seeds': 1,
    # 8 is below 5, but not below 6 on what was not seen.
    'memory_factor_at_baseline_loss': {**rivals, **dict.fromkeys(own, 4.0)},
    'memory_factor_within_1_percent_of_own_loss': {
      **rivals,
      **dict.fromkeys(own, 2.0),
    },
  }


def test_seeds_are_averaged_and_none_stays_none():
  worse = searches(gain=-1.0)
  for name in ('selective', 'selective_memory_loss'):
    worse[name] = searched([6, 6, 6, 6], [7, 7, 7, 7])
  better = searches()
  better['h2o_on_baseline'] = searched([5] * 4, [6] * 4)
  figures = pruning.summary([better, worse])
  result = figures['memory_factor_at_baseline_loss']
  assert result['selective'] is None
  assert result['h2o_on_baseline'] == (8 + 2) / 2
  within = figures['memory_factor_within_1_percent_of_own_loss']
  assert within['selective'] == (2 + 8) / 2
  assert 'none' in pruning.as_text([better, worse])


def test_the_last_line_has_the_figures(monkeypatch, tmp_path, capsys):
  fake_training.install(monkeypatch)
  settings = []

  def search_seed(*args):
    settings.append(args)
    return searches()

  monkeypatch.setattr(pruning, 'search_seed', search_seed)
  pruning.main([f'--output_dir={tmp_path}', '--seeds=2', '--report_batches=3'])
  assert settings == [(tmp_path, 0, 8, 3), (tmp_path, 1, 8, 3)]
  figures = json.loads(capsys.readouterr().out.splitlines()[-1])
  kept = json.loads((tmp_path / 'pruning.json').read_text())
  assert figures == kept['figures'] == pruning.summary([searches()] * 2)
  for variant in pruning.VARIANTS:
    assert (tmp_path / f'{variant.name}-seed1' / 'summary.json').exists()
  assert (tmp_path / 'pruning.png').read_bytes().startswith(b'\x89PNG')


def test_dry_run_names_the_runs(tmp_path, capsys):
  pruning.main([f'--output_dir={tmp_path}', '--dry_run'])
  said = capsys.readouterr().out
  assert said.count('selective_t5x.main --run_mode=train') == 9
  assert 'MEMORY_LOSS_WEIGHT' in said


def test_flags_that_cannot_be(tmp_path):
  with pytest.raises(ValueError, match='--seeds=0: expected 1 or more'):
    pruning.main([f'--output_dir={tmp_path}', '--seeds=0'])
