"""Seeds that are added to kept figures, whose runs are gone."""

import functools
import json

import pytest

from selective_t5x.comparisons import compare
from selective_t5x.errors import UserError
from selective_t5x.studies import experiments, keep, more_seeds
from tests.support import fake_training


@pytest.fixture(name='study')
def _study(tmp_path, monkeypatch):
  """Keeps three seeds of a comparison that trains nothing."""
  setting = fake_training.write_setting(tmp_path)
  experiment = experiments.Experiment(
    tuple(setting['gin_files']),
    tuple(setting['variants']),
    tuple(setting['gin_bindings']),
  )
  monkeypatch.setitem(experiments.EXPERIMENTS, 'toy', experiment)
  train = functools.partial(compare.compare, program=fake_training.PROGRAM)
  monkeypatch.setattr(compare, 'compare', train)
  train(
    setting['gin_files'],
    setting['variants'],
    gin_bindings=setting['gin_bindings'],
    output_dir=tmp_path / 'out',
    seeds=3,
  )
  keep.keep(tmp_path / 'out', tmp_path / 'kept' / 'toy')
  return tmp_path


def _add(study, variants='selective', *flags):
  folder = study / 'kept' / 'toy'
  more_seeds.main(
    [
      str(folder),
      f'--variants={variants}',
      f'--output_dir={study / "more"}',
      *flags,
    ]
  )
  return json.loads((folder / 'comparison.json').read_text())


def test_figures_are_those_of_a_comparison_that_had_all_seeds(study):
  figures = _add(study, 'selective', '--seeds=2')
  setting = fake_training.write_setting(study)
  whole = compare.compare(
    setting['gin_files'],
    setting['variants'],
    gin_bindings=setting['gin_bindings'],
    output_dir=study / 'whole',
    seeds=5,
  )
  for name in ('results', 'seeds', 'seeds_of', 'references', 'costs'):
    assert figures[name] == whole[name], name
  assert [cell['name'] for cell in figures['cells']] == [
    cell['name'] for cell in whole['cells']
  ]
  table = (study / 'kept' / 'toy' / 'table.txt').read_text()
  assert '5 seeds: mean' in table
  assert 'too few' not in table


def test_claims_rest_on_a_confidence_sequence_since_seeds_were_seen(study):
  kept = json.loads((study / 'kept' / 'toy' / 'comparison.json').read_text())
  assert kept['stopping'] is None
  figures = _add(study)
  assert figures['stopping'] == {'margin': 0.01, 'max_seeds': 20}
  assert all('confidence sequence' in line for line in figures['claims'])
  assert any('Seeds were added' in line for line in figures['caveats'])


def test_with_keep_the_other_variants_keep_their_own_comparison(study):
  file = study / 'kept' / 'toy' / 'comparison.json'
  before = file.read_bytes()
  kept = json.loads(before)
  kept['variants'].append('other')
  kept['references']['other'] = 'baseline'
  for part in ('results', 'costs', 'cells'):
    kept[part].append({**kept[part][-1], 'variant': 'other'})
  for part in ('differences', 'used_differences'):
    for values in kept[part].values():
      values['other'] = 'x'
  kept['differences']['own'] = {'baseline': '1', 'selective': '1', 'other': '2'}
  file.write_text(json.dumps(kept))
  _add(study, 'selective', f'--keep={study / "more_kept"}')
  assert json.loads(file.read_text()) == kept
  target = study / 'more_kept' / 'toy'
  figures = json.loads((target / 'comparison.json').read_text())
  file.write_bytes(before)
  assert figures == _add(study, 'selective')
  assert (target / 'table.txt').read_text() == (
    study / 'kept' / 'toy' / 'table.txt'
  ).read_text()


def test_seeds_are_added_again_and_a_variant_may_lag_behind(study):
  _add(study, 'baseline', '--seeds=2')
  figures = _add(study, 'selective')
  assert figures['seeds_of'] == {'baseline': 5, 'selective': 4}
  assert figures['seeds'] == [0, 1, 2, 3, 4]
  assert not (study / 'more' / 'toy' / 'selective-seed4').exists()
  figures = _add(study, 'selective')
  assert figures['seeds_of'] == {'baseline': 5, 'selective': 5}


def test_a_dry_run_trains_and_changes_nothing(study, capsys):
  file = study / 'kept' / 'toy' / 'comparison.json'
  before = file.read_bytes()
  _add(study, 'selective', '--dry_run')
  assert file.read_bytes() == before
  assert not (study / 'more').exists()
  assert 'selective-seed3 (to run)' in capsys.readouterr().out


def test_runs_of_another_configuration_are_refused(study):
  file = study / 'kept' / 'toy' / 'comparison.json'
  before = file.read_bytes()
  with pytest.raises(UserError, match=r'the command.*LEARNING_RATE=0.3'):
    _add(study, 'selective', '--gin.LEARNING_RATE=0.3')
  assert file.read_bytes() == before


def test_figures_of_another_definition_of_the_loss_are_refused(study):
  file = study / 'kept' / 'toy' / 'comparison.json'
  kept = json.loads(file.read_text())
  del kept['loss_definition']
  file.write_text(json.dumps(kept))
  with pytest.raises(UserError, match=r'loss_definition: .* None'):
    _add(study)


@pytest.mark.parametrize(
  ('variants', 'message'),
  [
    ('selectiv', "has no 'selectiv'; nearest: selective"),
    (
      'baseline,selective',
      'different numbers of seeds: baseline 4, selective 3',
    ),
  ],
)
def test_variants_that_cannot_get_the_same_seeds_are_named(
  study, variants, message
):
  _add(study, 'baseline')
  with pytest.raises(UserError, match=message):
    _add(study, variants)


def test_a_folder_that_is_no_experiment_is_named(study):
  (study / 'kept' / 'toy').rename(study / 'kept' / 'copi')
  with pytest.raises(UserError, match="no experiment 'copi'; nearest: copy"):
    more_seeds.main([str(study / 'kept' / 'copi'), '--variants=selective'])


def test_a_reference_without_the_new_seeds_is_refused(study):
  kept = json.loads((study / 'kept' / 'toy' / 'comparison.json').read_text())
  setting = fake_training.write_setting(study)
  added = compare.compare(
    setting['gin_files'],
    setting['variants'][1:],
    gin_bindings=setting['gin_bindings'],
    output_dir=study / 'alone',
    first_seed=3,
  )
  with pytest.raises(UserError, match='its reference baseline has not all'):
    more_seeds.joined(kept, added)
