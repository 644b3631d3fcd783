import json
import pathlib
import subprocess
import sys

import pytest

from selective_t5x import cells, results
from selective_t5x.errors import UserError
from tests import fake_training


@pytest.fixture
def setting(tmp_path):
  return fake_training.write_setting(tmp_path)


def starts(cell):
  return len((cell.folder / 'starts.txt').read_text().splitlines())


def test_every_variant_has_the_same_seeds_and_its_own_folder(setting):
  made = cells.make_cells(**setting)
  assert [cell.name for cell in made] == [
    'baseline-seed0',
    'selective-seed0',
    'baseline-seed1',
    'selective-seed1',
  ]
  for cell in made:
    seeds = {cell.bindings[name] for name in ('RANDOM_SEED', 'TRAIN_SEED')}
    assert seeds == {str(cell.seed)}
  assert not setting['output_dir'].exists()


def test_files_come_in_order_and_flags_last(setting):
  cell = cells.make_cells(**setting)[3]
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
  cell = cells.make_cells(**setting)[0]
  echo = f'printf "%s\\n" {cell.command}'
  said = subprocess.run(
    ['bash', '-c', echo], capture_output=True, text=True, check=True
  )
  assert tuple(said.stdout.splitlines()[3:]) == cell.arguments


def test_differences_are_of_variants_not_of_seeds(setting):
  assert cells.differences(cells.make_cells(**setting)) == {
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
    cells.make_cells(**{**setting, **change})


def test_a_name_is_a_folder_and_used_once(setting):
  for name in ('../up', '', 'a b', '-'):
    with pytest.raises(UserError, match='expected a name'):
      cells.Variant(name, ())
  with pytest.raises(UserError, match="'baseline' is there twice"):
    twice = [setting['variants'][0]] * 2
    cells.make_cells(**{**setting, 'variants': twice})


def test_a_finished_cell_is_kept(setting):
  cell = cells.make_cells(**setting)[0]
  cells.run_cell(cell, fake_training.PROGRAM)
  summary = (cell.folder / results.SUMMARY_FILE).read_bytes()
  assert json.loads(summary)['steps'] == 40
  assert 'training --run_mode=train' in (cell.folder / 'log.txt').read_text()
  again = cells.make_cells(**setting)[0]
  assert again.finished
  cells.run_cell(again, fake_training.PROGRAM)
  assert starts(cell) == 1
  assert (cell.folder / results.SUMMARY_FILE).read_bytes() == summary


def test_a_failed_cell_shows_its_log_and_goes_on_later(setting):
  cell = cells.make_cells(**setting)[0]
  setting['output_dir'].mkdir()
  crash = setting['output_dir'] / 'crash'
  crash.touch()
  with pytest.raises(cells.CellError, match=r'exit code 1(.|\n)*on fire'):
    cells.run_cell(cell, fake_training.PROGRAM)
  assert not cell.finished
  crash.unlink()
  cells.run_cell(cell, fake_training.PROGRAM)
  assert starts(cell) == 2
  rows = results.read_metrics(cell.folder / 'train')
  assert [row['step'] for row in rows] == [10, 20, 30, 40]


def test_a_run_of_another_configuration_is_not_touched(setting):
  cell = cells.make_cells(**setting)[0]
  cells.run_cell(cell, fake_training.PROGRAM)
  before = {p: p.stat().st_mtime_ns for p in cell.folder.rglob('*')}
  changed = {**setting, 'gin_bindings': ['LEARNING_RATE = 0.3']}
  with pytest.raises(UserError, match='LEARNING_RATE is 0.2 there, 0.3 here'):
    cells.make_cells(**changed)
  assert {p: p.stat().st_mtime_ns for p in cell.folder.rglob('*')} == before


def test_a_mistake_that_trained_nothing_can_be_mended_in_place(setting):
  cell = cells.make_cells(**setting)[0]
  fails = (sys.executable, '-c', 'raise SystemExit("no such task")')
  with pytest.raises(cells.CellError, match='no such task'):
    cells.run_cell(cell, fails)
  mended = {**setting, 'gin_bindings': ['LEARNING_RATE = 0.3']}
  cell = cells.make_cells(**mended)[0]
  cells.run_cell(cell, fake_training.PROGRAM)
  there = results.read_json(cell.folder / cells.CELL_FILE)
  assert there['bindings']['LEARNING_RATE'] == '0.3'


def test_another_engine_is_another_configuration(setting, monkeypatch):
  cells.run_cell(cells.make_cells(**setting)[0], fake_training.PROGRAM)
  monkeypatch.setattr('selective_t5x.engine_name', lambda: 'other')
  with pytest.raises(UserError, match='engine is .* there, other here'):
    cells.make_cells(**setting)


def test_a_comment_makes_no_other_configuration(setting):
  cells.run_cell(cells.make_cells(**setting)[0], fake_training.PROGRAM)
  path = pathlib.Path(setting['gin_files'][0])
  path.write_text(f'# What it is.\n{path.read_text()}')
  assert cells.make_cells(**setting)[0].finished


def test_a_folder_with_something_else_in_it_is_refused(setting):
  cell = cells.make_cells(**setting)[0]
  (cell.folder / 'checkpoint_10').mkdir(parents=True)
  with pytest.raises(UserError, match='no comparison wrote'):
    cells.make_cells(**setting)


def test_waits_for_another_process_at_the_same_cell(setting):
  cell = cells.make_cells(**setting)[0]
  code = (
    'import fcntl, pathlib, sys, time\n'
    'sys.path.insert(0, sys.argv[2])\n'
    'from selective_t5x import cells, results\n'
    'import fake_training\n'
    'folder = pathlib.Path(sys.argv[1])\n'
    'with open(folder / ".cell.lock", "w") as lock:\n'
    '  fcntl.flock(lock, fcntl.LOCK_EX)\n'
    '  print("locked", flush=True)\n'
    '  sys.stdin.readline()\n'
    '  fake_training.write_run(folder, steps=40, seed=0, selective=False,\n'
    '                          pause=0.3)\n'
    '  results.write_summary(folder)\n'
  )
  cell.folder.mkdir(parents=True)
  results.write_json(cell.folder / cells.CELL_FILE, cells._identity(cell))
  here = str(pathlib.Path(__file__).parent)
  with subprocess.Popen(
    [sys.executable, '-c', code, str(cell.folder), here],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  ) as other:
    assert other.stdout.readline() == b'locked\n'
    other.stdin.write(b'go\n')
    other.stdin.flush()
    cells.run_cell(cell, fake_training.PROGRAM)
  assert cell.finished and starts(cell) == 1
