"""The search of budgets: its files, its interruptions, what it refuses."""

import json
import signal
import sys
import types

import numpy as np
import pytest

from selective_t5x import pruning
from selective_t5x.budgets import losses, search
from selective_t5x.cli import exits
from selective_t5x.config import reader
from selective_t5x.errors import UserError
from selective_t5x.nn import settings
from selective_t5x.runs import restore


class Killed(BaseException):
  pass


class ToyLosses:
  """In place of a model's losses: those of the tuning batches rise slowly."""

  layers = 2
  calls_left = 1000

  def __init__(self, run, policy):
    pass

  def __call__(self, candidates, batches):
    ToyLosses.calls_left -= 1
    if ToyLosses.calls_left < 0:
      raise Killed
    return [
      4 + sum((i + 1) / b for i, b in enumerate(budgets)) + sum(batches)
      for budgets in candidates
    ]


@pytest.fixture
def toy(monkeypatch):
  """A run whose losses cost nothing; search(folder, ...) searches it."""
  monkeypatch.setattr(losses, 'Losses', ToyLosses)
  monkeypatch.setattr(losses, 'cache_bytes', lambda *_: 8)
  monkeypatch.setattr(ToyLosses, 'calls_left', 1000)
  cfg = types.SimpleNamespace(
    mixture_or_task_name='toy', split='validation', batch_size=4
  )
  run = types.SimpleNamespace(
    checkpoint='runs/toy/checkpoint_1',
    dataset_cfg=cfg,
    length=32,
    model=None,
    batches=lambda count: [0] * (count - 1) + [1],
  )

  def searched(folder, **settings):
    settings = {'tuning_batches': 2, 'report_batches': 1} | settings
    return search.search(run, pruning.Window(), output_dir=folder, **settings)

  searched.run = run
  return searched


def test_the_path_starts_without_pruning_and_ends_below_the_goal(toy, tmp_path):
  result = toy(tmp_path, target_loss=4.5)
  assert result == json.loads((tmp_path / 'search.json').read_text())
  first, last = result['path'][0], result['path'][-1]
  assert first['budgets'] == [32, 32] and first['memory_factor'] == 1
  assert first['tuning_loss'] == 4 + 3 / 32
  assert last['tuning_loss'] <= result['goal'] == 4.5
  assert last['memory_factor'] == 64 / sum(last['budgets']) > 3
  for point in result['path']:
    assert point['report_loss'] == point['tuning_loss'] + 1


@pytest.mark.parametrize(
  ('settings', 'goal'),
  [
    ({}, 4 + 3 / 32),
    ({'tolerance': 0.01}, 1.01 * (4 + 3 / 32)),
    ({'tolerance': 0.01, 'target_loss': 4.5}, 4.5),
    ({'tolerance': 0.5, 'target_loss': 4.5}, 1.5 * (4 + 3 / 32)),
    ({'target_loss': 3.0}, 3.0),
  ],
)
def test_the_looser_goal_holds(toy, tmp_path, settings, goal):
  result = toy(tmp_path, **settings)
  assert result['goal'] == pytest.approx(goal)
  assert all(p['tuning_loss'] <= goal for p in result['path'][1:])


def test_killed_anywhere_it_ends_with_the_same_budgets(
  toy, tmp_path, monkeypatch
):
  whole = toy(tmp_path / 'whole', tolerance=0.3)
  assert len(whole['path']) > 8
  kills = 0
  while True:
    # Enough for two cuts, or for the report.
    monkeypatch.setattr(ToyLosses, 'calls_left', 2)
    try:
      result = toy(tmp_path / 'killed', tolerance=0.3)
      break
    except Killed:
      kills += 1
      assert kills < 100
  assert kills > 4
  assert result == whole
  # Finished, it is kept.
  monkeypatch.setattr(ToyLosses, 'calls_left', 0)
  assert toy(tmp_path / 'killed', tolerance=0.3) == whole


def test_another_search_in_the_folder_is_named(toy, tmp_path):
  toy(tmp_path, tolerance=0.1)
  with pytest.raises(UserError, match='tolerance is 0.1 there, 0.2 here'):
    toy(tmp_path, tolerance=0.2)


def test_a_search_of_a_model_that_has_changed_is_refused(toy, tmp_path):
  """What is kept is of the checkpoint's content and of the configuration."""
  checkpoint = tmp_path / 'checkpoint_1'
  (checkpoint / 'state').mkdir(parents=True)
  toy.run.checkpoint = str(checkpoint)
  toy.run.config = reader.read('x.y = 1\ntrain.steps = 1\n', 'test')
  (checkpoint / 'state/array').write_text('weights')
  result = toy(tmp_path / 'out', tolerance=0.1)
  # How it was trained does not count.
  toy.run.config = reader.read('x.y = 1\ntrain.steps = 2\n', 'test')
  assert toy(tmp_path / 'out', tolerance=0.1) == result
  toy.run.config = reader.read('x.y = 2\n', 'test')
  with pytest.raises(UserError, match='another configuration: x.y is 1 there'):
    toy(tmp_path / 'out', tolerance=0.1)
  toy.run.config = reader.read('x.y = 1\n', 'test')
  (checkpoint / 'state/array').write_text('other weights')
  with pytest.raises(UserError, match='content of the checkpoint is'):
    toy(tmp_path / 'out', tolerance=0.1)
  # Nothing says what an older version searched.
  file = tmp_path / 'out/search.json'
  state = json.loads(file.read_text())
  del state['identity']
  file.write_text(json.dumps(state))
  with pytest.raises(UserError, match='does not record the configuration'):
    toy(tmp_path / 'out', tolerance=0.1)


def test_a_budget_that_is_no_number_is_no_state(toy, tmp_path):
  toy(tmp_path, tolerance=0.1)
  file = tmp_path / 'search.json'
  state = json.loads(file.read_text())
  state['path'][0]['budgets'][0] = True
  with pytest.raises(UserError, match='search.json'):
    search.check_state(file, state)


def test_uniform_budgets(toy, tmp_path):
  result = toy(tmp_path, tolerance=0.2, uniform=True)
  assert len(result['path']) > 3
  assert all(a == b for a, b in (p['budgets'] for p in result['path']))


GIVEN = ('--checkpoint=a', '--gin_file=b', '--output_dir=c')


@pytest.mark.parametrize(
  ('flags', 'expected'),
  [
    (GIVEN[:0], 'no --checkpoint'),
    (GIVEN[:1], 'no --gin_file'),
    (GIVEN[:2], 'no --output_dir'),
    ((*GIVEN, '--steps=lader'), 'one of ladder, fixed; nearest: ladder'),
    ((*GIVEN, '--tuning_batches=0'), 'expected 1 or more'),
    ((*GIVEN, '--target_loss=3', '--baseline=x'), 'give one of them'),
    ((*GIVEN, '--target_loss=nan'), '--target_loss=nan: expected'),
    ((*GIVEN, '--tolerance=-1'), '--tolerance=-1.0: expected 0 or more'),
    ((*GIVEN, '--tolerence=1'), 'no such flag; nearest: --tolerance'),
    (GIVEN, 'a: no such folder'),
  ],
)
def test_flags_that_cannot_be(flags, expected):
  with pytest.raises(UserError, match=expected):
    search.main(flags)


def test_a_missing_checkpoint_is_one_line_and_exit_code_2(
  tmp_path, monkeypatch, capsys
):
  (tmp_path / 'selective').mkdir()
  argv = [
    'search',
    f'--checkpoint={tmp_path}/selectiv',
    '--gin_file=gin/pruning/selective.gin',
    f'--output_dir={tmp_path}/out',
  ]
  monkeypatch.setattr(sys, 'argv', argv)
  monkeypatch.setattr(signal, 'signal', lambda *_: None)
  with pytest.raises(SystemExit) as stopped:
    exits.run_main(search.main)
  assert stopped.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.endswith('selectiv: no such folder; nearest: selective')


def test_checkpoints_are_found(tmp_path):
  run = tmp_path / 'run'
  for step in (100, 20):
    (run / f'checkpoint_{step}').mkdir(parents=True)
  with pytest.raises(UserError, match='no config.gin'):
    restore.find(str(run))
  (run / 'config.gin').touch()
  assert restore.find(str(run)) == (run, run / 'checkpoint_100')
  assert restore.find(str(run / 'checkpoint_20'))[1] == run / 'checkpoint_20'
  with pytest.raises(UserError, match='no such checkpoint; nearest: checkpoin'):
    restore.find(str(run / 'checkpoint_10'))
  with pytest.raises(UserError, match='no checkpoint; expected the folder'):
    restore.find(str(tmp_path))


@pytest.mark.slow
def test_a_run_is_searched_and_takes_its_budgets(
  selective_run, tmp_path, capsys
):
  flags = [
    f'--checkpoint={selective_run}',
    '--gin_file=gin/pruning/selective.gin',
    f'--output_dir={tmp_path}',
    '--tuning_batches=1',
    '--report_batches=1',
  ]
  search.main([*flags, '--target_loss=9'])
  said = capsys.readouterr().out
  state = json.loads((tmp_path / 'search.json').read_text())
  # An untrained model's loss is far below 9 whatever it keeps.
  result = state['path'][-1]['budgets']
  assert result == [2, 2]
  size = state['cache_bytes_per_row']
  assert f'{size["pruned"]:,} bytes in place of {size["full"]:,}' in said
  assert size['full'] > 5 * size['pruned']

  with restore.restored(
    str(selective_run), gin_files=[str(tmp_path / 'budgets.gin')]
  ) as run:
    config = run.model.module.config
    assert config.pruning == pruning.Pruning(
      pruning.Selective(), result, settings.sizes(config)
    )
    # Fixed budgets and traced ones give the same loss.
    (batch,) = run.batches(1)
    loss, _ = run.model.loss_fn(run.params, batch, None)
    last = state['path'][-1]['tuning_loss']
    assert float(loss) == pytest.approx(last, rel=1e-5)
    with pytest.raises(UserError, match='batches of 4 rows'):
      run.batches(10**6)

  def refused(message, *bindings, files=()):
    with pytest.raises(UserError, match=message):
      with restore.restored(
        str(selective_run), gin_files=files, gin_bindings=bindings
      ):
        pass

  budgets = [str(tmp_path / 'budgets.gin')]
  refused('those of another model', 'NUM_LAYERS = 3', files=budgets)
  refused('found for a decoder with .* 1 heads', 'NUM_HEADS = 1', files=budgets)
  refused('does not select', files=['gin/attention/baseline.gin', *budgets])
  refused('no such file', files=['gin/pruning/selectiv.gin'])
  with pytest.raises(
    UserError, match='no policy is bound: give a file of gin/pruning'
  ):
    search.main(
      [
        *flags,
        '--gin_file=gin/attention/selective.gin',
        '--gin.PRUNING=None',
        '--dry_run',
      ]
    )


def test_batches_without_weighted_tokens_have_no_loss():
  measure = losses.Losses.__new__(losses.Losses)  # It looks at these first.
  batch = {'decoder_loss_weights': np.zeros((2, 4), np.int32)}
  with pytest.raises(UserError, match='no token of the batches has a loss'):
    measure([[2, 2]], [batch])
