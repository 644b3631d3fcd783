"""Which variants of a comparison the masking viewer of its page shows."""

import json
import subprocess

import pytest

from selective_t5x.report import examples


@pytest.fixture
def comparison(tmp_path):
  """Two selective variants and a baseline, of seeds 0 and 1."""
  cells = []
  for variant in ('baseline', 'selective', 'other'):
    for seed in (0, 1):
      folder = tmp_path / f'{variant}-seed{seed}'
      folder.mkdir()
      name = 'causal' if variant == 'baseline' else 'selective'
      text = f'LAST = 1\nATTENTION = @attention.{name}_attention\n'
      (folder / 'config.gin').write_text(text)
      cells.append({'name': folder.name, 'variant': variant, 'seed': seed})
  return ('', tmp_path, {'cells': cells, 'seeds': [0, 1]})


@pytest.fixture
def reports(monkeypatch):
  """Stands in for the report's process; returns the commands it was given."""
  commands = []

  def run(command, **_):
    commands.append(command)
    flags = dict(c[2:].split('=') for c in command if c.startswith('--'))
    if 'other' in flags['checkpoint']:
      return subprocess.CompletedProcess(command, 1)
    figures = {'examples': [{}] * int(flags['examples'])}
    with open(f'{flags["output_dir"]}/masking.json', 'w') as file:
      json.dump(figures, file)
    return subprocess.CompletedProcess(command, 0)

  monkeypatch.setattr(subprocess, 'run', run)
  return commands


def test_selective_variants_are_shown_by_their_first_seed(
  comparison, reports, capsys
):
  result = examples.collect([comparison], 3)
  assert len(reports) == 2
  # Three rows for two variants are one for each.
  assert {name: len(f['examples']) for name, f in result.items()} == {
    'selective': 1
  }
  assert 'other-seed0: the viewer leaves this run out (exit code 1' in (
    capsys.readouterr().err
  )


def test_a_report_of_as_many_rows_is_kept(comparison, reports):
  examples.collect([comparison], 2)
  examples.collect([comparison], 2)
  ran = [command for command in reports if 'selective-seed0' in str(command)]
  assert len(ran) == 1
  result = examples.collect([comparison], 8)
  assert len(result['selective']['examples']) == 4


def test_a_report_is_made_again_where_the_model_has_changed(
  comparison, reports
):
  folder = comparison[1] / 'selective-seed0'
  (folder / 'checkpoint_4/state').mkdir(parents=True)

  def ran():
    before = len(reports)
    examples.collect([comparison], 2)
    return [c for c in reports[before:] if 'selective-seed0' in str(c)]

  assert ran() and not ran()
  (folder / 'checkpoint_4/state/array').write_text('trained again')
  assert ran() and not ran()
  (folder / 'checkpoint_8/state').mkdir(parents=True)
  assert ran() and not ran()
  with open(folder / 'config.gin', 'a') as file:
    file.write('SELECTION_HEAD = 1\n')
  assert ran() and not ran()
  # Nothing says what an older version looked at.
  (folder / 'masking/identity.json').unlink()
  assert ran() and not ran()


def test_variants_of_several_comparisons_have_both_names(comparison, reports):
  _, folder, figures = comparison
  result = examples.collect([('copy', folder, figures)], 1)
  assert list(result) == ['copy, selective']
