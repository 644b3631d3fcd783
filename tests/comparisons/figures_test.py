import json
import math

import numpy as np
import pytest

from selective_t5x.comparisons import plan
from selective_t5x.comparisons.figures import compare_cells
from selective_t5x.comparisons.training import run_cells
from selective_t5x.report import tables
from selective_t5x.runs.losses import LOSS
from selective_t5x.runs.summary import write_summary
from tests.support import fake_training


def trained(setting, **change):
  cells = plan.make_cells(**{**setting, **change})
  run_cells(cells, program=fake_training.PROGRAM)
  return cells


def last_row(path):
  return json.loads(path.read_text().splitlines()[-1])


def test_figures_are_what_the_raw_files_say(setting):
  figures = compare_cells(trained(setting, seeds=[0, 1, 2]))
  losses = {
    variant: [
      last_row(
        setting['output_dir']
        / f'{variant}-seed{seed}'
        / 'training_eval/toy/metrics.jsonl'
      )['loss']
      for seed in range(3)
    ]
    for variant in ('baseline', 'selective')
  }
  baseline, selective = figures['results']
  assert (baseline['variant'], selective['variant']) == tuple(losses)
  assert {r['task'] for r in figures['results']} == {'toy'}
  assert baseline['step'] == selective['step'] == 40
  for entry, values in zip(figures['results'], losses.values(), strict=True):
    got = entry['metrics'][LOSS]
    assert got['values'] == values
    assert got['mean'] == pytest.approx(sum(values) / 3)
    assert (got['min'], got['max']) == (min(values), max(values))
  assert 'difference' not in baseline['metrics'][LOSS]
  pairs = zip(losses['selective'], losses['baseline'], strict=True)
  gaps = [a - b for a, b in pairs]
  difference = selective['metrics'][LOSS]['difference']
  assert difference['values'] == pytest.approx(gaps)
  assert difference['mean'] == pytest.approx(sum(gaps) / 3)
  # Student's t with two degrees of freedom has a closed form.
  mean = sum(gaps) / 3
  variance = sum((g - mean) ** 2 for g in gaps) / 2
  t = mean / math.sqrt(variance / 3)
  p_value = 1 - abs(t) / math.sqrt(t * t + 2)
  assert difference['p_value'] == pytest.approx(p_value, rel=1e-6)
  # The 97.5th percentile of t with two degrees of freedom.
  half = 4.302653 * math.sqrt(variance / 3)
  low, high = difference['t_interval']
  assert (low, high) == pytest.approx((mean - half, mean + half), rel=1e-6)
  assert difference['p_corrected'] == difference['p_value']
  assert figures['stopping'] is None
  assert figures['claims'] == [
    'toy: the loss of selective is lower than that of baseline by '
    f'{-mean:.4f}; 95 % t interval {low:+.4f} to {high:+.4f}, '
    f'p = {p_value:.2g}.'
  ]


def test_costs_and_curves_are_those_of_the_runs(setting):
  figures = compare_cells(trained(setting))
  cost, slower = figures['costs']
  assert (cost['parameters'], cost['steps']) == (1234, 40)
  assert cost['train_seconds']['values'] == [2.0, 2.0]
  assert slower['train_seconds']['values'] == [3.0, 3.0]
  assert cost['steps_per_second']['mean'] == 20
  for entry in (cost, slower):
    folder = setting['output_dir'] / f'{entry["variant"]}-seed1'
    costs = json.loads((folder / 'costs.json').read_text())
    assert entry['flops_per_step'] == costs['flops_per_step']
    assert entry['step_bytes'] == costs['step_bytes']
    run = json.loads((folder / 'run.json').read_text())['runs'][-1]
    assert entry['peak_rss_bytes']['values'][1] == run['peak_rss_bytes']
    rows = [json.loads(r) for r in open(folder / 'train/metrics.jsonl')]
    tokens = sum(
      row['timing/seconds']
      * row['timing/target_tokens_per_second']
      * row['non_padding_fraction/loss_weights']
      for row in rows
    )
    seconds = sum(row['timing/seconds'] for row in rows)
    got = entry['tokens_per_second']['values'][1]
    assert got == pytest.approx(tokens / seconds)
  curves = {(c['variant'], c['seed'], c['task']): c for c in figures['curves']}
  assert len(curves) == 2 * 2 * 2
  curve = curves['selective', 1, 'toy']
  assert curve['step'] == [10, 20, 30, 40]
  assert curve['train_seconds'] == [0.75, 1.5, 2.25, 3.0]
  assert curve['loss'] == [
    fake_training.loss_at(step, seed=1, selective=True)
    for step in curve['step']
  ]
  assert figures['train_task'] == 'toy'


def test_losses_at_equal_time_are_what_the_raw_files_say(setting):
  figures = compare_cells(trained(setting, seeds=[0, 1, 2]))
  view = figures['equal_time']
  # The baseline's last step. Selective is between its steps 20 and 30 then.
  assert view['train_seconds'] == 2.0
  expected = {'baseline': [], 'selective': []}
  for seed in range(3):
    folder = setting['output_dir'] / f'baseline-seed{seed}'
    row = last_row(folder / 'training_eval/toy/metrics.jsonl')
    expected['baseline'].append(row['loss'])
    folder = setting['output_dir'] / f'selective-seed{seed}'
    lines = (folder / 'training_eval/toy/metrics.jsonl').read_text()
    at = {r['step']: r['loss'] for r in map(json.loads, lines.splitlines())}
    # A third of the way from 1.5 to 2.25 seconds is left.
    expected['selective'].append(at[20] / 3 + at[30] * 2 / 3)
  for entry in view['results']:
    got = entry['loss']['values']
    assert got == pytest.approx(expected[entry['variant']])
  gaps = np.subtract(expected['selective'], expected['baseline'])
  difference = view['results'][1]['loss']['difference']
  assert difference['values'] == pytest.approx(gaps)
  assert difference['t_interval'][0] <= difference['mean']


def test_what_was_not_evaluated_around_equal_time_has_no_loss_there(setting):
  cells = trained(setting, seeds=[0])
  path = cells[1].folder / 'training_eval/toy/metrics.jsonl'
  path.write_text(path.read_text().splitlines(keepends=True)[-1])
  write_summary(cells[1].folder)
  baseline, selective = compare_cells(cells)['equal_time']['results']
  assert baseline['loss']['mean'] is not None
  assert selective['loss']['values'] == [None]


def test_runs_that_measured_no_time_have_no_view_of_it(setting):
  cells = trained(setting, seeds=[0])
  path = cells[0].folder / 'train/metrics.jsonl'
  path.write_text(path.read_text().replace('timing/seconds', 'other'))
  write_summary(cells[0].folder)
  figures = compare_cells(cells)
  assert figures['equal_time'] is None
  assert any(c.startswith('No view at equal time') for c in figures['caveats'])


@pytest.mark.parametrize(
  ('parameters', 'agree', 'said'),
  [
    ('1234', True, 'as many parameters as its reference'),
    ('2345', False, 'Numbers of parameters differ'),
    ('?', None, 'are not known'),
  ],
)
def test_whether_parameters_agree_is_said(setting, parameters, agree, said):
  cells = trained(setting, seeds=[0])
  path = cells[1].folder / 'model-info.txt'
  path.write_text(path.read_text().replace('1234', parameters))
  write_summary(cells[1].folder)
  figures = compare_cells(cells)
  assert figures['equal_parameters']['agree'] is agree
  assert said in figures['caveats'][-1]
  table = [t for t in tables.tables(figures) if 'against param' in t.title]
  assert [t.rows[-1][:2] for t in table] == (
    [('selective', '2,345')] if agree is False else []
  )


def test_values_that_were_used_and_differ_are_there(setting):
  cells = trained(setting)
  assert compare_cells(cells)['used_differences'] == {
    'model.attention': {'baseline': '@causal()', 'selective': '@selective()'},
    'causal.scale': {'baseline': 'None', 'selective': None},
    'selective.scale': {'baseline': None, 'selective': 'None'},
  }
  path = cells[-1].folder / 'operative_config.gin'
  path.write_text(path.read_text().replace('STEPS = 40', 'STEPS = 50'))
  steps = compare_cells(cells)['used_differences']['TRAIN_STEPS']
  assert steps == {'baseline': '40', 'selective': '40; 50'}
  path.unlink()
  assert compare_cells(cells)['used_differences'] is None


def test_runs_that_shared_the_machine_are_said_to(setting):
  cells = plan.make_cells(**{**setting, 'seeds': [0]})
  run_cells(cells, jobs=2, program=fake_training.PROGRAM)
  assert any('Up to 2 runs' in c for c in compare_cells(cells)['caveats'])


def test_one_seed_makes_no_claim(setting):
  figures = compare_cells(trained(setting, seeds=[0]))
  assert figures['caveats'][0] == 'One seed: no claim about significance.'
  assert not any('trained at a time' in c for c in figures['caveats'])
  difference = figures['results'][1]['metrics'][LOSS]['difference']
  assert difference['p_value'] is None


def test_two_seeds_show_their_spread_and_no_test(setting):
  figures = compare_cells(trained(setting))
  assert 'too few for a test' in figures['caveats'][0]
  difference = figures['results'][1]['metrics'][LOSS]['difference']
  assert difference['p_value'] is None
  assert difference['min'] < difference['max']


def test_a_mixture_as_a_whole_is_left_out(setting):
  cells = trained(setting, seeds=[0])
  for cell in cells:
    for task in ('one', 'two'):
      folder = cell.folder / 'training_eval' / task
      folder.mkdir()
      source = cell.folder / 'training_eval/toy/metrics.jsonl'
      (folder / 'metrics.jsonl').write_text(source.read_text())
    write_summary(cell.folder)
  figures = compare_cells(cells)
  assert [r['task'] for r in figures['results']] == ['one'] * 2 + ['two'] * 2


def test_what_makes_runs_unlike_is_said(setting):
  cells = trained(setting, seeds=[0])
  path = cells[0].folder / 'run.json'
  run = json.loads(path.read_text())
  run['runs'][0]['git']['commit'] = 'badcafe'
  path.write_text(json.dumps(run))
  path = cells[1].folder / 'training_eval/toy/metrics.jsonl'
  path.write_text(''.join(path.read_text().splitlines(keepends=True)[:-1]))
  write_summary(cells[1].folder)
  caveats = compare_cells(cells)['caveats']
  assert 'commits of the suite: badcafe, c0ffee' in caveats[1]
  assert (
    'selective, seed 0: toy was last evaluated at step 30 of 40' in (caveats[2])
  )


def test_what_is_not_shown_is_not_claimed(setting):
  cells = trained(setting, seeds=[0, 1, 2])
  for cell, loss in zip(cells, [1, 2, 1, 0.5, 1, 1.4], strict=True):
    path = cell.folder / 'training_eval/toy/metrics.jsonl'
    row = last_row(path) | {'loss': loss, 'cross_ent_loss': loss}
    path.write_text(f'{json.dumps(row)}\n')
    write_summary(cell.folder)
  (claim,) = compare_cells(cells)['claims']
  assert 'it is not shown that the losses of selective and baseline' in claim
  assert 'corrected' not in claim  # There is one difference.


def test_a_claim_neither_tests_rounding_nor_rounds_to_nothing(setting):
  cells = trained(setting, seeds=[0, 1, 2])

  def claim(*gaps):
    losses = []
    for base, gap in zip((2.0, 2.3, 2.7), gaps, strict=True):
      losses += [base, base + gap]
    for cell, loss in zip(cells, losses, strict=True):
      path = cell.folder / 'training_eval/toy/metrics.jsonl'
      row = last_row(path) | {'loss': loss, 'cross_ent_loss': loss}
      path.write_text(f'{json.dumps(row)}\n')
      write_summary(cell.folder)
    (line,) = compare_cells(cells)['claims']
    return line

  assert claim(-0.1, -0.1, -0.1) == (
    'toy: the losses of selective and baseline differ by -0.1000 in every '
    'seed, the same within rounding, which no test can judge.'
  )
  assert claim(1e-8, 0, -1e-8) == (
    'toy: the losses of selective and baseline are equal within rounding in '
    'every seed.'
  )
  assert claim(2e-5, 2.5e-5, 1.8e-5) == (
    'toy: the loss of selective is higher than that of baseline by 0.000021; '
    '95 % t interval +0.000012 to +0.000030, p = 0.0097.'
  )
