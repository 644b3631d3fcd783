"""The frontier: a curve for each model and policy that suits it."""

import json

import pytest

from selective_t5x.budgets import frontier
from selective_t5x.errors import UserError
from selective_t5x.runs import restore


@pytest.mark.slow
def test_curves_of_a_run_and_of_a_search(
  selective_run, tmp_path, capsys, monkeypatch
):
  search = tmp_path / 'tuned'
  search.mkdir()
  point = {'budgets': [8, 2], 'memory_factor': 3.5, 'report_loss': 1.25}
  point['tuning_loss'] = 1.2
  state = {'finished': True, 'goal': 1.5, 'path': [point]}
  (search / 'search.json').write_text(json.dumps(state))
  out = tmp_path / 'out'
  flags = [
    f'--checkpoint=mine={selective_run}',
    f'--search={search}',
    f'--output_dir={out}',
    '--policies=selective,window',
    '--batches=1',
  ]
  frontier.main(flags)
  said = capsys.readouterr().out
  curves = json.loads((out / 'frontier.json').read_text())['curves']
  assert [(c['model'], c['policy']) for c in curves] == [
    ('mine', 'selective'),
    ('mine', 'window'),
  ]
  selective, window = (curve['points'] for curve in curves)
  assert selective[0]['loss'] == pytest.approx(window[0]['loss'], abs=1e-6)
  assert selective[-1]['budgets'] == [2, 2]
  # With two keys they are the same: the first and the own one.
  assert selective[-1]['loss'] == pytest.approx(window[-1]['loss'], abs=1e-6)
  assert selective[-3]['loss'] != pytest.approx(window[-3]['loss'], abs=1e-6)
  rows = (out / 'frontier.md').read_text().splitlines()
  assert rows[-1].split() == '| tuned | searched | 3.5 | 1.2500 | 8 2 |'.split()
  assert len(rows) == 4 + len(selective) + len(window) + 1
  assert (out / 'frontier.txt').read_text().splitlines()[2] in said
  assert (out / 'frontier.png').read_bytes().startswith(b'\x89PNG')

  # Started again, it evaluates nothing, and refuses to mix figures.
  monkeypatch.setattr(restore, 'restored', None)
  before = (out / 'frontier.json').read_text()
  frontier.main(flags)
  assert (out / 'frontier.json').read_text() == before
  with pytest.raises(UserError, match='batches is 1 there, 2 here'):
    frontier.main([*flags, '--batches=2'])
  state = json.loads(before)
  name = 'mine: content of the checkpoint'
  state['identity'][name] = 'of other weights'
  (out / 'frontier.json').write_text(json.dumps(state))
  with pytest.raises(UserError, match=f'{name} is of other weights there'):
    frontier.main(flags)


@pytest.mark.parametrize(
  ('flags', 'expected'),
  [
    ((), 'no --checkpoint'),
    (('--checkpoint=a=b',), 'no --output_dir'),
    (('--checkpoint=a', '--output_dir=c'), 'expected NAME=DIR'),
    (
      ('--checkpoint=a=b', '--checkpoint=a=c', '--output_dir=c'),
      'a=c: expected NAME=DIR, each NAME once',
    ),
    (
      ('--checkpoint=a=b', '--output_dir=c', '--policies=tovo'),
      "no policy 'tovo'; nearest: tova",
    ),
    (('--checkpoint=a=b', '--output_dir=c', '--batches=0'), '1 or more'),
    (('--checkpoint=a=b', '--output_dir=c', '--search=d'), 'no search.json'),
    (('--checkpoint=a=b', '--output_dir=c'), 'b: no such folder'),
  ],
)
def test_flags_that_cannot_be(flags, expected):
  with pytest.raises(UserError, match=expected):
    frontier.main(flags)
