import json
import os
import signal
import subprocess
import sys
import time

import pytest

from selective_t5x import compare as command
from selective_t5x import errors
from selective_t5x.cli import flags
from selective_t5x.comparisons import compare
from selective_t5x.comparisons.training import CellError
from selective_t5x.errors import UserError
from tests.support import fake_training

NEEDED = ('--gin_file=a', '--variant=abc=f', '--output_dir=o')


def run(setting, **change):
  return compare.compare(
    setting['gin_files'],
    setting['variants'],
    output_dir=setting['output_dir'],
    program=fake_training.PROGRAM,
    **{'seeds': 2, **change},
  )


def arguments(setting):
  return [
    *(f'--gin_file={file}' for file in setting['gin_files']),
    *(f'--variant={v.name}={v.gin_files[0]}' for v in setting['variants']),
    f'--output_dir={setting["output_dir"]}',
  ]


def start_counts(setting):
  return {
    path.parent.name: len(path.read_text().splitlines())
    for path in setting['output_dir'].glob('*/starts.txt')
  }


def test_all_outputs_are_written_and_say_the_same(setting):
  figures = run(setting)
  out = setting['output_dir']
  assert json.loads((out / 'comparison.json').read_text()) == figures
  mean = figures['results'][0]['metrics']['loss_per_token']['mean']
  assert f'{mean:.4f}' in (out / 'table.txt').read_text()
  points = sum(len(c['step']) for c in figures['curves'])
  assert len((out / 'curves.csv').read_text().splitlines()) == points + 1
  assert (out / 'learning_curves.png').read_bytes().startswith(b'\x89PNG')


def test_started_again_it_keeps_everything_and_says_the_same(setting):
  first = run(setting)
  assert run(setting) == first
  assert set(start_counts(setting).values()) == {1}


def test_a_failed_run_leaves_the_others_and_goes_on_later(setting, capsys):
  out = setting['output_dir']
  out.mkdir()
  (out / 'crash').touch()
  with pytest.raises(CellError, match='2 of 2 runs failed: baseline-seed0'):
    run(setting, seeds=1)
  assert 'the disk is on fire' in capsys.readouterr().err
  assert not (out / 'comparison.json').exists()
  (out / 'crash').unlink()
  assert run(setting, seeds=1)['results']
  assert set(start_counts(setting).values()) == {2}


@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_started_again_it_gives_the_same_figures(setting, how):
  slow = ['--gin.TRAIN_SECONDS=0.5', '--gin.LEARNING_RATE=0.2']
  code = (
    'import functools, sys\n'
    'from selective_t5x import compare as command\n'
    'from selective_t5x.cli import exits\n'
    'from selective_t5x.comparisons import compare\n'
    'from tests.support import fake_training\n'
    'compare.compare = functools.partial('
    'compare.compare, program=fake_training.PROGRAM)\n'
    'exits.run_main(command.main)\n'
  )
  command = [sys.executable, '-c', code, *arguments(setting), *slow]
  command += ['--jobs=2']
  process = subprocess.Popen(command, stderr=subprocess.PIPE)
  both = [
    setting['output_dir'] / f'{variant.name}-seed0' / 'train' / 'metrics.jsonl'
    for variant in setting['variants']
  ]
  deadline = time.monotonic() + 60
  while not all(map(os.path.exists, both)) and time.monotonic() < deadline:
    time.sleep(0.05)
  process.send_signal(how)
  process.communicate()
  code = -how if how == signal.SIGKILL else errors.INTERRUPTED
  assert process.returncode == code
  assert not (setting['output_dir'] / 'comparison.json').exists()
  if how == signal.SIGTERM:  # The runs in progress were ended with it.
    assert all(len(train.read_text().splitlines()) < 4 for train in both)
  # After SIGKILL they live on; second ones must not write beside them.
  subprocess.run(command, check=True, capture_output=True)
  assert all(len(train.read_text().splitlines()) == 4 for train in both)
  again = setting['output_dir'] / 'comparison.json'

  fresh = {**setting, 'output_dir': setting['output_dir'].with_name('fresh')}
  run(fresh, seeds=1, jobs=2)
  expected = json.loads((fresh['output_dir'] / 'comparison.json').read_text())
  got = json.loads(again.read_text())
  for name in ('results', 'costs', 'curves', 'caveats', 'equal_time'):
    assert got[name] == expected[name]
  tables = [s['output_dir'] / 'table.txt' for s in (setting, fresh)]
  assert tables[0].read_bytes() == tables[1].read_bytes()


def test_the_command_prints_the_table_and_writes_the_page(
  setting, monkeypatch, capsys
):
  fake_training.install(monkeypatch)
  command.main([*arguments(setting), '--seeds=1', '--gin.LEARNING_RATE=0.3'])
  said = capsys.readouterr().out
  assert (setting['output_dir'] / 'table.txt').read_text() in said
  assert 'One seed: no claim about significance.' in said
  page = (setting['output_dir'] / 'report.html').read_text()
  assert 'selective against baseline' in page
  assert '--gin.LEARNING_RATE=0.3' in page


def test_the_page_has_the_memory_curves_of_a_frontier(
  setting, monkeypatch, tmp_path
):
  fake_training.install(monkeypatch)
  point = {'budgets': [4, 4], 'memory_factor': 16.0, 'loss': 3.21}
  curve = {'model': 'm<b>', 'policy': 'window', 'points': [point]}
  searched = {'model': 's', 'policy': 'searched', 'points': [point]}
  state = {'curves': [curve], 'searched': [searched]}
  (tmp_path / 'frontier.json').write_text(json.dumps(state))
  command.main([*arguments(setting), f'--frontier={tmp_path}'])
  page = (setting['output_dir'] / 'report.html').read_text()
  assert 'Loss against the size of the cache' in page
  assert 'm&lt;b&gt;' in page and 'm<b>' not in page
  assert '3.2100' in page and 'searched' in page


def test_dry_run_prints_cells_and_differences_and_writes_nothing(
  setting, capsys
):
  command.main([*arguments(setting), '--seeds=2', '--jobs=3', '--dry_run'])
  said = capsys.readouterr().out
  assert said.startswith('4 runs, 3 at a time\n')
  assert said.count('python -m selective_t5x.main --run_mode=train') == 4
  assert 'selective-seed1 (to run)' in said
  assert 'model.attention\n  baseline: @causal()' in said
  assert 'selective.head\n  baseline: (not set)\n  selective: 0' in said
  assert not setting['output_dir'].exists()


def test_a_sweep_compares_at_each_point_of_the_grid(
  setting, monkeypatch, capsys
):
  fake_training.install(monkeypatch)
  command.main(
    [
      *arguments(setting),
      '--seeds=3',
      '--sweep=LEARNING_RATE=[0.1, 0.3]',
      '--sweep=MIXTURE_OR_TASK_NAME=["toy"]',
      '--variant_gin.selective.selective.head=1',
    ]
  )
  figures = json.loads((setting['output_dir'] / 'comparison.json').read_text())
  point = '+LEARNING_RATE=0.3+MIXTURE_OR_TASK_NAME=toy'
  assert len(figures['variants']) == 4
  assert figures['references'][f'selective{point}'] == f'baseline{point}'
  rates = figures['differences']['LEARNING_RATE']
  assert rates[f'selective{point}'] == '0.3'
  heads = figures['differences']['selective.head'].values()
  assert list(heads) == [None, '1', None, '1']
  said = capsys.readouterr().out
  assert f'selective{point} - baseline{point}' in said
  claim = f'the loss of selective{point} is lower than that of baseline{point}'
  assert 'corrected for 2 differences' in said
  assert claim in said
  assert claim in (setting['output_dir'] / 'report.html').read_text()


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], 'no --gin_file'),
    (['--gin_file=a'], 'no --variant'),
    (['--gin_file=a', '--variant=a'], 'no --output_dir'),
    (['--sedes=1'], r'--sedes: no such flag; nearest: --seeds'),
    (['--seeds=x'], 'invalid int value'),
    (['--jobs=0'], '--jobs=0: expected 1 or more'),
    ([*NEEDED, '--margin=0.1'], '--margin: has no effect without --until_dec'),
    (
      [*NEEDED, '--until-decided', '--seeds=5', '--max_seeds=4'],
      '--seeds=5: more than --max_seeds=4',
    ),
    ([*NEEDED, '--until_decided', '--max_seeds=2'], 'expected 3 or more'),
    (['--jobs=auto'], "argument --jobs: invalid int value: 'auto'"),
    (['--gin.A'], 'expected --gin.A=VALUE'),
    (
      ['--gin_file=a', '--variant=a', '--output_dir=o', '--seeds=0'],
      '--seeds=0: expected 1 or more',
    ),
    (
      ['--gin_file=a', '--variant=a', '--output_dir=o'],
      'expected NAME=FILE',
    ),
    (
      [*NEEDED, '--variant_gin.ab.X=1'],
      '--variant_gin.ab.X=1: no variant of this name; nearest: abc',
    ),
    ([*NEEDED, '--examples=-1'], "--examples: '-1', expected 0 or more"),
    ([*NEEDED, '--frontier=f'], 'f: no frontier.json; expected a folder'),
    ([*NEEDED, '--variant_gin.abc.X'], 'expected --variant_gin.abc.X=VALUE'),
    ([*NEEDED, '--sweep=X=3'], '--sweep=X=3: expected .* a list of plain'),
    ([*NEEDED, '--sweep=X=[]'], 'a list of plain values'),
    ([*NEEDED, '--sweep=X=["a b"]'], "variant 'abc.X=a b': expected a name"),
  ],
)
def test_mistakes_get_one_line(arguments, message):
  with pytest.raises(UserError, match=message):
    command.main(arguments)


def test_commands_that_train_nothing_take_no_jobs():
  parser = flags.parser('selective_t5x.report', 'it shows')
  with pytest.raises(UserError, match='--jobs: no such flag'):
    flags.parse(parser, ['--jobs=2'])


def test_a_mistake_exits_with_2_and_one_line():
  ended = subprocess.run(
    [sys.executable, '-m', 'selective_t5x.compare', '--sedes=1'],
    capture_output=True,
    text=True,
  )
  assert ended.returncode == 2
  assert ended.stderr.startswith('error: --sedes')
  assert len(ended.stderr.splitlines()) == 1
