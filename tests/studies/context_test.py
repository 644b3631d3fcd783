"""The study of contexts: its settings, figures and, slowly, a tiny one."""

import json

import pytest

from selective_t5x.config.session import Session
from selective_t5x.errors import UserError
from selective_t5x.report import tables
from selective_t5x.studies import context, pruning
from tests.studies.pruning_test import searched
from tests.support import fake_training


def test_every_context_has_as_many_tokens_a_step():
  for length in context.CONTEXTS:
    config = Session(
      pruning.GIN_FILES,
      ["MODEL_DIR = 'none'", *context.bindings(length)],
    ).config
    macros = config.macros()
    rows = macros['BATCH_SIZE'].value
    assert rows * macros['MAX_LENGTH'].value == context.TOKENS
    assert macros['TASK_FEATURE_LENGTHS'].value == {'targets': length}


def test_points_are_those_of_searches_below_the_baselines_loss():
  baseline = {'tuning_loss': 5.0, 'report_loss': 6.0}
  own = searched([4, 4.02, 4.5, 4.9], [5, 5.01, 5.9, 6.01])
  got = context.points({'selective': own}, baseline)
  # 8 is below 5, but not below 6 on what the search did not see.
  assert got['at_baseline_loss']['selective']['memory_factor'] == 4
  assert got['within_1_percent']['selective']['memory_factor'] == 2


def measured(factor, live=(10.0, 30.0)):
  point = factor and {'memory_factor': factor}
  kinds = ('at_baseline_loss', 'within_1_percent')
  return {
    'context': 64,
    'live_keys': dict.fromkeys(pruning.OWN, list(live)),
    **{kind: dict.fromkeys(pruning.OWN, point) for kind in kinds},
  }


@pytest.fixture
def fake(monkeypatch):
  fake_training.install(monkeypatch)
  calls = []

  def measure(folder, seed, tuning, report):
    calls.append((folder.name, seed, tuning, report))
    assert (folder / f'baseline-seed{seed}' / 'summary.json').exists()
    return measured(10.0 + seed)

  monkeypatch.setattr(context, 'measure', measure)
  return calls


def test_the_last_line_has_the_figures_of_all_contexts(fake, tmp_path, capsys):
  context.main(
    [
      f'--output_dir={tmp_path}',
      '--contexts=64,128',
      '--tokens=256',
      '--report_batches=3',
      '--gin.TRAIN_STEPS=20',
    ]
  )
  last = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert last['seeds'] == 3 and list(last['contexts']) == ['64', '128']
  assert fake[:2] == [('context_64', 0, 8, 3), ('context_64', 1, 8, 3)]
  saved = json.loads((tmp_path / 'context.json').read_text())
  assert saved['contexts'] == last['contexts']
  figures = last['contexts']['64']
  factor = figures['memory_factor_at_baseline_loss']['selective']
  assert factor['values'] == [10, 11, 12] and factor['mean'] == 11
  # 4.303 of t with two degrees of freedom.
  assert factor['interval'] == pytest.approx(
    [11 - 4.3027 / 3**0.5, 11 + 4.3027 / 3**0.5], abs=1e-3
  )
  assert figures['live_keys']['selective_memory_loss']['mean'] == 20
  assert figures['keys_without_forgetting'] == 32.5
  assert figures['loss_minus_baseline']['selective']['mean'] < 0
  assert 'baseline' not in figures['loss_minus_baseline']
  for length in (64, 128):
    folder = tmp_path / f'context_{length}' / 'selective_memory_loss-seed2'
    bindings = json.loads((folder / 'cell.json').read_text())['bindings']
    assert bindings['BATCH_SIZE'] == str(256 // length)
  text = (tmp_path / 'context.txt').read_text()
  assert '64 selective' in text and '11.0 (8.5 to 13.5)' in text


def test_a_loss_that_a_seed_does_not_reach_has_no_factor(fake, monkeypatch):
  comparison = {
    'loss': 'l',
    'results': [
      {
        'task': 't',
        'variant': name,
        'metrics': {'l': {'values': [3.0, 3.1]}},
      }
      for name in ('baseline', *pruning.OWN)
    ],
  }
  figures = context.figures_of(comparison, [measured(None), measured(9.0)])
  factor = figures['memory_factor_at_baseline_loss']['selective']
  assert factor == {'mean': None, 'interval': None, 'values': [None, 9.0]}
  text = tables.text(context.table({'64': figures}))
  assert 'not reached in every seed' in text


def test_dry_run_names_every_run(tmp_path, capsys):
  context.main([f'--output_dir={tmp_path / "out"}', '--dry_run'])
  said = capsys.readouterr().out
  assert said.count('selective_t5x.main --run_mode=train') == 4 * 3 * 3
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--contexts=100', '100 does not divide the 2048 tokens'),
    ('--contexts=64,x', 'expected numbers with commas'),
    ('--tokens=0', '--tokens=0: expected 1 or more'),
  ],
)
def test_contexts_that_cannot_be(tmp_path, flag, message):
  with pytest.raises(UserError, match=message):
    context.main([f'--output_dir={tmp_path}', flag])


@pytest.mark.slow
def test_a_tiny_study_trains_searches_and_counts(tmp_path, capsys):
  argv = [
    f'--output_dir={tmp_path}',
    '--contexts=16,32',
    '--tokens=64',
    '--seeds=1',
    '--tuning_batches=1',
    '--report_batches=1',
    '--gin_file=gin/test/tiny.gin',
  ]
  # The file's batch is overridden by that of the context.
  context.main(argv)
  first = capsys.readouterr().out.splitlines()[-1]
  contexts = json.loads(first)['contexts']
  assert list(contexts) == ['16', '32']
  for length, figures in contexts.items():
    live = figures['live_keys']['selective']['mean']
    assert 1 <= live <= figures['keys_without_forgetting'] + 1e-3
    assert figures['keys_without_forgetting'] == (int(length) + 1) / 2
    kind = 'memory_factor_within_1_percent_of_own_loss'
    assert figures[kind]['selective']['mean'] >= 1
  # Again: everything is there.
  context.main(argv)
  assert capsys.readouterr().out.splitlines()[-1] == first
  record = tmp_path / 'context_16' / 'measured' / 'seed0.json'
  there = json.loads(record.read_text())
  there['depends_on']['selective'] = 'another'
  record.write_text(json.dumps(there))
  with pytest.raises(UserError, match='other models or batches'):
    context.main(argv)
