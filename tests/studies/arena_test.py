"""The arena: what is measured on what, its figures, and a tiny run."""

import dataclasses
import json

import pytest

from selective_t5x import attention, pruning
from selective_t5x.errors import UserError
from selective_t5x.report import arena as arena_report
from selective_t5x.report import tables
from selective_t5x.studies import arena, arena_figures


def test_policies_are_those_that_suit_a_model():
  plain = arena.policies_of('baseline', attention.causal_attention)
  assert 'adakv' in plain and plain['whole'] is None
  assert not {'selective', 'threshold', 'certified'} & set(plain)
  selective = arena.policies_of('selective', attention.selective_attention)
  assert {*arena.POLICIES, 'whole'} - set(selective) == {'adakv'}
  gated = arena.policies_of('retention_distilled', attention.gated_attention)
  assert set(gated) == {'whole', arena.UNTRAINED, *arena._OF_GATES}
  assert set(gated) == set(
    arena.policies_of('delayed_eviction', attention.gated_attention)
  )


def test_every_policy_of_the_package_is_in_the_arena():
  kinds = {type(policy) for policy in arena.POLICIES.values()}
  every = {
    value
    for value in vars(pruning).values()
    if isinstance(value, type) and issubclass(value, pruning.Policy)
  }
  assert kinds == every - {pruning.Policy}


def cell(experiment, model, seed, policy, losses, timed=None, certificate=None):
  return {
    'experiment': experiment,
    'model': model,
    'seed': seed,
    'policy': policy,
    'points': [
      {
        'budget': 8,
        'loss': loss,
        'accuracy': loss / 10,
        'cache_bytes': 1000 // (i + 1),
        'tokens_per_second': timed,
        'speed_over_whole': timed and timed / 50,
        'load_average': timed and timed / 25,
        'certificate': certificate,
      }
      for i, loss in enumerate(losses)
    ],
  }


CELLS = [
  cell('language', 'baseline', 0, 'whole', [4.0], timed=50.0),
  cell('language', 'baseline', 1, 'whole', [4.2]),
  cell('language', 'baseline', 0, 'window', [4.5, 5.0, 6.0], timed=90.0),
  cell('language', 'baseline', 1, 'window', [4.7, 5.2, 6.2]),
  cell('needles', 'baseline', 0, 'window', [9.0, 5.0, 1.0]),
  cell('needles', 'baseline', 1, 'window', [7.0, 5.0, 1.0]),
  cell(
    'language',
    'selective',
    0,
    'certified',
    [4.4, 4.9, 7.0],
    certificate={'mean': 0.1, 'max': 0.3},
  ),
  cell(
    'needles',
    'selective',
    0,
    'certified',
    [1.0, 1.0, 1.0],
    certificate={'mean': 0.1, 'max': 0.5},
  ),
  cell('language', 'retention', 0, 'selective', [4.3, 4.8, 6.9]),
  cell('language', 'retention', 0, arena.UNTRAINED, [4.4, 4.7, 7.0]),
  cell('needles', 'retention', 0, 'selective', [8.0, 6.0, 5.0]),
  cell('needles', 'retention', 0, arena.UNTRAINED, [7.0, 6.0, 4.0]),
]


def test_figures_are_means_over_seeds():
  figures = arena_figures.summary(CELLS)
  assert figures['seeds'] == 2
  window = figures['policies']['window']['baseline']
  assert [f['share'] for f in window] == [1 / 4, 1 / 8, 1 / 16]
  assert window[0]['language_loss'] == pytest.approx(4.6)
  assert window[0]['needle_accuracy'] == pytest.approx(0.8)
  assert [f['cache_bytes'] for f in window] == [1000, 500, 333]
  assert window[0]['tokens_per_second'] == 90.0
  assert window[0]['speed_over_whole'] == 1.8
  assert figures['load_average'] == [2.0, 3.6]
  assert window[0]['certificate'] is None
  (whole,) = figures['policies']['whole']['baseline']
  assert whole['share'] == 1 and whole['needle_accuracy'] is None
  certified = figures['policies']['certified']['selective']
  assert certified[0]['certificate'] == 0.5


def test_trained_gates_are_compared_with_their_start():
  figures = arena_figures.summary(CELLS)
  gains = figures['gates']['retention']
  assert [g['share'] for g in gains] == [1 / 4, 1 / 8, 1 / 16]
  losses = [g['language_loss'] for g in gains]
  assert losses == pytest.approx([-0.1, 0.1, -0.1])
  accuracies = [g['needle_accuracy'] for g in gains]
  assert accuracies == pytest.approx([0.1, 0, 0.1])
  assert arena_report.verdicts(figures) == [
    'retention: the trained gates have a lower loss at 2 of 3 budgets and a '
    'higher needle accuracy at 2 of 3 budgets than their untrained start'
  ]


def test_the_frontier_has_what_nothing_beats():
  figures = arena_figures.summary(CELLS)
  best = [
    (model, policy, figures['cache_bytes'])
    for model, policy, figures in arena_report.frontier(figures)
  ]
  assert best == [
    ('baseline', 'window', 333),
    ('retention', arena.UNTRAINED, 500),
    ('baseline', 'whole', 1000),
  ]


def test_a_models_policies_are_side_by_side():
  table = arena_report.of_model(arena_figures.summary(CELLS), 'baseline')
  assert table.title == 'baseline: with every key loss 4.1000'
  assert (
    table.header[1] == 'loss, 0.25' and table.header[-1] == 'needles, 0.0625'
  )
  window = ('window', '4.6000', '5.1000', '6.1000', '0.800', '0.500', '0.100')
  assert table.rows == (window,)


def test_every_number_of_the_page_is_in_the_figures(tmp_path):
  arena.write(tmp_path, CELLS)
  kept = json.loads((tmp_path / 'arena.json').read_text())
  assert kept['figures'] == json.loads(json.dumps(arena_figures.summary(CELLS)))
  text = (tmp_path / 'arena.txt').read_text()
  document = (tmp_path / 'arena.html').read_text()
  for table in (
    arena_report.table(kept['figures']),
    arena_report.gates(kept['figures']),
    arena_report.of_model(kept['figures'], 'baseline'),
  ):
    for row in table.rows:
      for number in row:
        assert number in document
  assert text == arena_report.text(kept['figures']) + '\n'
  assert tables.text(arena_report.table(kept['figures'])) in text
  for verdict in arena_report.verdicts(kept['figures']):
    assert verdict in text and verdict in document
  assert '<svg' in document


def test_dry_run_names_the_models(tmp_path, capsys):
  arena.main([f'--output_dir={tmp_path}', '--dry_run', '--fast'])
  said = capsys.readouterr().out
  assert 'language: 400 steps, seeds: 1, models: baseline, selective, ' in said
  assert 'retention_distilled' in said
  arena.main([f'--output_dir={tmp_path}', '--dry_run', '--seeds=2'])
  said = capsys.readouterr().out
  assert 'needles: 1000 steps, seeds: 2' in said
  with pytest.raises(UserError, match='--seeds=0: expected 1 or more'):
    arena.main([f'--output_dir={tmp_path}', '--seeds=0'])


def test_an_interrupted_arena_shows_what_it_has(tmp_path, capsys):
  flags = [f'--output_dir={tmp_path}', '--fast', '--so_far']
  with pytest.raises(UserError, match='no cell is measured yet'):
    arena.main(flags)
  for measured in CELLS:
    if measured['seed'] == 0:
      folder = f'{measured["model"]}-seed0'
      file = tmp_path / 'cells' / measured['experiment'] / folder
      file.mkdir(parents=True, exist_ok=True)
      settings = {k: v for k, v in measured.items() if k != 'points'}
      state = {'settings': settings, 'points': measured['points']}
      (file / f'{measured["policy"]}.json').write_text(json.dumps(state))
  arena.main(flags)
  figures = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert not figures['complete'] and figures['seeds'] == 1
  window = figures['policies']['window']['baseline']
  assert [f['language_loss'] for f in window] == [4.5, 5.0, 6.0]
  assert set(figures['gates']) == {'retention'}
  assert 'the cells measured so far' in (tmp_path / 'arena.txt').read_text()


@pytest.mark.slow
def test_the_arena_runs_and_resumes_at_a_tiny_size(
  tmp_path, monkeypatch, capsys
):
  tiny = dataclasses.replace(
    arena.FAST,
    variants=('baseline',),
    distilled=('retention',),
    distil_steps=2,
    batches=1,
    bindings={
      arena.LANGUAGE: (
        "TASK_FEATURE_LENGTHS = {'targets': 32}",
        'MAX_LENGTH = 32',
        "vocabularies.Choice.kind = 'bytes'",
      ),
      arena.NEEDLES: (),
    },
  )
  monkeypatch.setattr(arena, 'FAST', tiny)
  names = ('window', 'selective', 'certified')
  monkeypatch.setattr(
    arena, 'POLICIES', {name: arena.POLICIES[name] for name in names}
  )
  monkeypatch.setattr(arena, '_OF_GATES', ('selective', 'certified'))
  flags = [
    f'--output_dir={tmp_path}',
    '--fast',
    '--gin_file=gin/test/tiny.gin',
    '--gin.TRAIN_STEPS=4',
  ]
  arena.main(flags)
  figures = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert figures['seeds'] == 1
  assert {p: set(models) for p, models in figures['policies'].items()} == {
    'whole': {'baseline', 'retention_distilled'},
    'window': {'baseline'},
    'selective': {'retention_distilled'},
    'certified': {'retention_distilled'},
    arena.UNTRAINED: {'retention_distilled'},
  }
  whole = figures['policies']['whole']['baseline'][0]
  window = figures['policies']['window']['baseline']
  assert window[2]['cache_bytes'] < whole['cache_bytes'] / 4
  assert all(f['tokens_per_second'] > 0 for f in window)
  certified = figures['policies']['certified']['retention_distilled']
  assert all(0 < f['certificate'] <= 1 for f in certified)

  # Started again, it measures nothing.
  def nothing(*_, **__):
    raise AssertionError('measured again')

  monkeypatch.setattr(arena.arena_cells, 'measure', nothing)
  arena.main(flags)
  assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
