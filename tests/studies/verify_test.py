"""A drawn run is trained again and compared with what is kept."""

import json
import subprocess
import sys

import pytest

from selective_t5x.comparisons import compare, plan
from selective_t5x.errors import RunError, UserError
from selective_t5x.studies import keep, verify
from tests.support import fake_training


@pytest.fixture
def kept(tmp_path):
  """The kept figures of a study with one comparison of two seeds."""
  setting = fake_training.write_setting(tmp_path)
  compare.compare(
    setting['gin_files'],
    setting['variants'],
    output_dir=tmp_path / 'study' / 'toy',
    program=fake_training.PROGRAM,
    seeds=2,
  )
  keep.keep(tmp_path / 'study', tmp_path / 'kept')
  return tmp_path / 'kept'


def run(kept, *argv):
  verify.main(
    [str(kept), f'--output_dir={kept.parent / "again"}', *argv],
    program=fake_training.PROGRAM,
  )


def test_the_same_draw_is_the_same_run_and_has_the_same_figures(kept, capsys):
  names = {verify.choose(verify.kept_runs(kept), n).name for n in range(20)}
  assert len(names) == 4
  run(kept, '--draw=3')
  said = capsys.readouterr().out
  result = json.loads(said.splitlines()[-1])
  assert result['cell'] == verify.choose(verify.kept_runs(kept), 3).name
  assert result['differences'] == [] and result['figures'] == 2
  assert result['commit'] == 'c0ffee' and result['tolerance'] == 0
  assert result['fingerprints'] == []
  folder = kept.parent / 'again' / result['cell']
  assert (folder / 'starts.txt').read_text().count('start') == 1
  run(kept, '--draw=3')  # It is finished.
  assert (folder / 'starts.txt').read_text().count('start') == 1


def change(kept, function):
  path = kept / 'toy' / 'comparison.json'
  figures = json.loads(path.read_text())
  function(figures)
  path.write_text(json.dumps(figures))


def test_a_changed_figure_is_named(kept, capsys):
  def worse(figures):
    values = figures['results'][1]['metrics']['loss_per_token']['values']
    values[1] *= 1 + 1e-12

  change(kept, worse)
  cell = '--cell=toy/selective-seed1'
  with pytest.raises(RunError, match='toy/selective-seed1: 1 of 2 figures'):
    run(kept, cell)
  said = capsys.readouterr().out
  assert 'toy loss_per_token: ' in said and 'is recorded' in said
  assert json.loads(said.splitlines()[-1])['differences']
  # Other runs, and a tolerance, are not concerned.
  run(kept, '--cell=toy/selective-seed0')
  run(kept, cell, '--tolerance=1e-9')


def test_changed_bindings_and_programs_are_named(kept, capsys):
  def other(figures):
    prints = figures['cells'][0]['fingerprints']
    prints |= {'bindings': 'feed', 'program': 'beef'}
    figures['cells'][1]['fingerprints'] = None

  change(kept, other)
  run(kept, '--cell=toy/baseline-seed0')
  said = capsys.readouterr().out
  assert 'bindings: feed is recorded' in said
  assert 'program: beef is recorded, None now' in said
  run(kept, '--cell=toy/selective-seed0')
  assert 'an earlier version trained it' in capsys.readouterr().out


def test_a_changed_figure_exits_with_1(kept):
  change(
    kept,
    lambda figures: figures['results'][0]['metrics'].update(
      accuracy={'values': [0.5, 0.5]}
    ),
  )
  code = (
    'import sys\n'
    'from selective_t5x.cli import exits\n'
    'from selective_t5x.studies import verify\n'
    'from tests.support import fake_training\n'
    'exits.run_main(lambda a: verify.main(a, fake_training.PROGRAM))\n'
  )
  ended = subprocess.run(
    [sys.executable, '-c', code, str(kept), '--cell=toy/baseline-seed0']
    + [f'--output_dir={kept.parent / "again"}'],
    capture_output=True,
    text=True,
  )
  assert ended.returncode == 1
  assert 'toy accuracy: 0.5 is recorded' in ended.stderr


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['--cell=toy/selectiv-seed0'], 'no such run; nearest: toy/selective'),
    (['--tolerance=-1'], '--tolerance=-1.0: expected 0 or more'),
    (['--gin.TRAIN_STEPS=1'], 'the kept command has its own'),
  ],
)
def test_mistakes_get_one_line(kept, argv, message):
  with pytest.raises(UserError, match=message):
    run(kept, *argv)


def test_a_folder_of_another_run_is_refused(kept):
  folder = kept.parent / 'again' / 'toy' / 'baseline-seed0'
  folder.mkdir(parents=True)
  (folder / 'verify.json').write_text('{"arguments": ["--other"]}')
  with pytest.raises(UserError, match='has another run'):
    run(kept, '--cell=toy/baseline-seed0')
  with pytest.raises(UserError, match='no comparison.json'):
    verify.kept_runs(kept.parent / 'again')


@pytest.mark.slow
def test_a_real_run_is_the_same_to_the_bit(tmp_path, capsys):
  compare.compare(
    ['gin/experiments/variable_assignment.gin', 'gin/test/tiny.gin'],
    [plan.Variant('selective', ('gin/attention/selective.gin',))],
    output_dir=tmp_path / 'study' / 'toy',
  )
  keep.keep(tmp_path / 'study', tmp_path / 'kept')
  argv = [str(tmp_path / 'kept'), f'--output_dir={tmp_path / "again"}']
  verify.main(argv)
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert result['figures'] == 4 and result['differences'] == []
  # Bindings, data and program are recorded, and the same.
  assert result['fingerprints'] == []
  (run,) = verify.kept_runs(tmp_path / 'kept')
  assert all(run.record['fingerprints'].values())
