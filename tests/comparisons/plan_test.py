import json
import pathlib
import subprocess

import pytest

from selective_t5x.comparisons import plan
from selective_t5x.comparisons.training import run_cells
from selective_t5x.errors import UserError
from tests.support import fake_training


def test_every_variant_has_the_same_seeds_and_its_own_folder(setting):
  cells = plan.make_cells(**setting)
  assert [cell.name for cell in cells] == [
    'baseline-seed0',
    'selective-seed0',
    'baseline-seed1',
    'selective-seed1',
  ]
  for cell in cells:
    seeds = {cell.bindings[name] for name in ('RANDOM_SEED', 'TRAIN_SEED')}
    assert seeds == {str(cell.seed)}
  assert not setting['output_dir'].exists()


def test_files_come_in_order_and_flags_last(setting):
  cell = plan.make_cells(**setting)[3]
  folder = setting['output_dir'].parent
  assert cell.arguments == (
    '--run_mode=train',
    f'--gin_file={folder}/common.gin',
    f'--gin_file={folder}/selective.gin',
    '--gin.LEARNING_RATE=0.2',
    '--gin.RANDOM_SEED=1',
    '--gin.TRAIN_SEED=1',
    f"--gin.MODEL_DIR='{folder}/out/selective-seed1'",
  )
  assert cell.bindings['LEARNING_RATE'] == '0.2'
  assert cell.total_steps == 40
  assert cell.macro('EVAL_TASK_NAME') == 'toy'


def test_the_command_shown_is_what_a_shell_would_run(setting):
  cell = plan.make_cells(**setting)[0]
  echo = f'printf "%s\\n" {cell.command}'
  said = subprocess.run(
    ['bash', '-c', echo], capture_output=True, text=True, check=True
  )
  assert tuple(said.stdout.splitlines()[3:]) == cell.arguments


def test_differences_are_of_variants_not_of_seeds(setting):
  assert plan.differences(plan.make_cells(**setting)) == {
    'model.attention': {'baseline': '@causal()', 'selective': '@selective()'},
    'selective.head': {'baseline': None, 'selective': '0'},
  }


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'gin_bindings': ['RANDOM_SEED = 3']}, 'sets RANDOM_SEED itself'),
    ({'gin_bindings': ['MODEL_DIR = "x"']}, 'sets MODEL_DIR itself'),
    ({'gin_bindings': ['LEARNING_RAT = 3']}, 'nearest: LEARNING_RATE'),
    ({'gin_files': ['commun.gin']}, 'no such file'),
    ({'output_dir': 'gs://bucket/x'}, 'expected a local folder'),
  ],
)
def test_mistakes_are_found_before_anything_runs(setting, change, message):
  with pytest.raises(UserError, match=message):
    plan.make_cells(**{**setting, **change})


def test_a_name_is_a_folder_and_used_once(setting):
  for name in ('../up', '', 'a b', '-'):
    with pytest.raises(UserError, match='expected a name'):
      plan.Variant(name, ())
  with pytest.raises(UserError, match="'baseline' occurs twice"):
    twice = [setting['variants'][0]] * 2
    plan.make_cells(**{**setting, 'variants': twice})


def test_a_run_of_another_configuration_is_not_touched(setting):
  cell = plan.make_cells(**setting)[0]
  run_cells([cell], program=fake_training.PROGRAM)
  before = {p: p.stat().st_mtime_ns for p in cell.folder.rglob('*')}
  changed = {**setting, 'gin_bindings': ['LEARNING_RATE = 0.3']}
  with pytest.raises(UserError, match='LEARNING_RATE is 0.2 there, 0.3 here'):
    plan.make_cells(**changed)
  assert {p: p.stat().st_mtime_ns for p in cell.folder.rglob('*')} == before


def test_a_file_that_has_changed_is_another_configuration(setting, tmp_path):
  text = tmp_path / 'text.txt'
  text.write_text('one')
  checkpoint = tmp_path / 'start/checkpoint_4'
  (checkpoint / 'state').mkdir(parents=True)
  (checkpoint / 'state/array').write_text('weights')
  bindings = [
    f'train.files = [{str(text)!r}]',
    f'train.start = {str(checkpoint.parent)!r}',
  ]
  setting = {**setting, 'gin_bindings': bindings}
  run_cells([plan.make_cells(**setting)[0]], program=fake_training.PROGRAM)
  assert plan.make_cells(**setting)[0].finished
  text.write_text('two')
  with pytest.raises(UserError, match='content of .*text.txt is 3 bytes'):
    plan.make_cells(**setting)
  text.write_text('one')
  (checkpoint / 'state/array').write_text('other weights')
  with pytest.raises(UserError, match='content of .*start is'):
    plan.make_cells(**setting)
  # Older versions did not write down what files held.
  cell = setting['output_dir'] / 'baseline-seed0/cell.json'
  record = json.loads(cell.read_text())
  del record['files']
  cell.write_text(json.dumps(record))
  assert plan.make_cells(**setting)[0].finished


def test_another_engine_is_another_configuration(setting, monkeypatch):
  run_cells([plan.make_cells(**setting)[0]], program=fake_training.PROGRAM)
  monkeypatch.setattr('selective_t5x.engine_name', lambda: 'other')
  with pytest.raises(UserError, match='engine is .* there, other here'):
    plan.make_cells(**setting)


def test_a_comment_makes_no_other_configuration(setting):
  run_cells([plan.make_cells(**setting)[0]], program=fake_training.PROGRAM)
  path = pathlib.Path(setting['gin_files'][0])
  path.write_text(f'# What it is.\n{path.read_text()}')
  assert plan.make_cells(**setting)[0].finished


def test_a_folder_with_something_else_in_it_is_refused(setting):
  cell = plan.make_cells(**setting)[0]
  (cell.folder / 'checkpoint_10').mkdir(parents=True)
  with pytest.raises(UserError, match='no comparison wrote'):
    plan.make_cells(**setting)
