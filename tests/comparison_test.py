import itertools
import json
import math

import numpy as np
import pytest

from selective_t5x import cells, results
from selective_t5x.cell_runs import run_cells
from selective_t5x.comparison import compare_cells, spread
from tests import fake_training


@pytest.fixture
def setting(tmp_path):
  return fake_training.write_setting(tmp_path)


def trained(setting, **change):
  made = cells.make_cells(**{**setting, **change})
  run_cells(made, program=fake_training.PROGRAM)
  return made


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
    got = entry['metrics'][results.LOSS]
    assert got['values'] == values
    assert got['mean'] == pytest.approx(sum(values) / 3)
    assert (got['min'], got['max']) == (min(values), max(values))
  assert 'difference' not in baseline['metrics'][results.LOSS]
  pairs = zip(losses['selective'], losses['baseline'], strict=True)
  gaps = [a - b for a, b in pairs]
  difference = selective['metrics'][results.LOSS]['difference']
  assert difference['values'] == pytest.approx(gaps)
  assert difference['mean'] == pytest.approx(sum(gaps) / 3)
  # Student's t with two degrees of freedom has a closed form.
  mean = sum(gaps) / 3
  variance = sum((g - mean) ** 2 for g in gaps) / 2
  t = mean / math.sqrt(variance / 3)
  p_value = 1 - abs(t) / math.sqrt(t * t + 2)
  assert difference['p_value'] == pytest.approx(p_value, rel=1e-6)
  # Every sample of three of three: the 2.5th and 97.5th of their 27 means.
  means = sorted(
    sum(sample) / 3 for sample in itertools.product(gaps, repeat=3)
  )
  low, high = difference['interval']
  assert low == pytest.approx(means[0]) and high == pytest.approx(means[-1])
  assert figures['claims'] == [
    'toy: the loss of selective is lower than that of baseline by '
    f'{-mean:.4f}; 95 % interval {low:+.4f} to {high:+.4f}, p = {p_value:.2g}.'
  ]


def test_costs_and_curves_are_those_of_the_runs(setting):
  figures = compare_cells(trained(setting))
  cost = figures['costs'][0]
  assert (cost['parameters'], cost['steps']) == (1234, 40)
  assert cost['train_seconds']['values'] == [2.0, 2.0]
  assert cost['steps_per_second']['mean'] == 20
  curves = {(c['variant'], c['seed'], c['task']): c for c in figures['curves']}
  assert len(curves) == 2 * 2 * 2
  curve = curves['selective', 1, 'toy']
  assert curve['step'] == [10, 20, 30, 40]
  assert curve['loss'] == [
    fake_training.loss_at(step, seed=1, selective=True)
    for step in curve['step']
  ]
  assert figures['train_task'] == 'toy'


def test_one_seed_makes_no_claim(setting):
  figures = compare_cells(trained(setting, seeds=[0]))
  assert figures['caveats'] == ['One seed: no claim about significance.']
  difference = figures['results'][1]['metrics'][results.LOSS]['difference']
  assert difference['p_value'] is None


def test_two_seeds_show_their_spread_and_no_test(setting):
  figures = compare_cells(trained(setting))
  assert 'too few for a test' in figures['caveats'][0]
  difference = figures['results'][1]['metrics'][results.LOSS]['difference']
  assert difference['p_value'] is None
  assert difference['min'] < difference['max']


def test_a_mixture_as_a_whole_is_left_out(setting):
  made = trained(setting, seeds=[0])
  for cell in made:
    for task in ('one', 'two'):
      folder = cell.folder / 'training_eval' / task
      folder.mkdir()
      source = cell.folder / 'training_eval/toy/metrics.jsonl'
      (folder / 'metrics.jsonl').write_text(source.read_text())
    results.write_summary(cell.folder)
  figures = compare_cells(made)
  assert [r['task'] for r in figures['results']] == ['one'] * 2 + ['two'] * 2


def test_what_makes_runs_unlike_is_said(setting):
  made = trained(setting, seeds=[0])
  path = made[0].folder / 'run.json'
  run = json.loads(path.read_text())
  run['runs'][0]['git']['commit'] = 'badcafe'
  path.write_text(json.dumps(run))
  path = made[1].folder / 'training_eval/toy/metrics.jsonl'
  path.write_text(''.join(path.read_text().splitlines(keepends=True)[:-1]))
  results.write_summary(made[1].folder)
  caveats = compare_cells(made)['caveats']
  assert 'commits of the suite: badcafe, c0ffee' in caveats[1]
  assert (
    'selective, seed 0: toy was last evaluated at step 30 of 40' in (caveats[2])
  )


def test_a_loss_that_is_not_finite_gives_no_mean():
  got = spread([None, 1.0, 2.0], reference=[1.0, 1.0, 1.0])
  assert got['mean'] is None and got['difference']['mean'] is None
  assert got['difference']['p_value'] is None


def test_equal_differences_have_no_p_value():
  got = spread([2.0, 3.0, 4.0], reference=[1.0, 2.0, 3.0])
  assert got['difference']['mean'] == 1
  assert got['difference']['p_value'] is None
  assert got['difference']['interval'] is None


def test_an_interval_narrows_with_seeds():
  rng = np.random.default_rng(0)
  differences = rng.normal(1, 1, 400).tolist()
  widths = []
  for seeds in (25, 400):
    found = spread(differences[:seeds], reference=[0.0] * seeds)['difference']
    low, high = found['interval']
    assert low < found['mean'] < high
    widths.append(high - low)
  # 2 x 1.96 x 1 / sqrt(400); a quarter of that of 25.
  assert widths[1] == pytest.approx(0.196, rel=0.15)
  assert widths[0] == pytest.approx(4 * widths[1], rel=0.3)


def test_what_is_not_shown_is_not_claimed(setting):
  made = trained(setting, seeds=[0, 1, 2])
  for cell, loss in zip(made, [1, 2, 1, 0.5, 1, 1.4], strict=True):
    path = cell.folder / 'training_eval/toy/metrics.jsonl'
    row = last_row(path) | {'loss': loss, 'cross_ent_loss': loss}
    path.write_text(f'{json.dumps(row)}\n')
    results.write_summary(cell.folder)
  (claim,) = compare_cells(made)['claims']
  assert 'it is not shown that the losses of selective and baseline' in claim
