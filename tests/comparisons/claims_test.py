"""What a comparison claims, with fixed and with added seeds."""

import dataclasses

import pytest

from selective_t5x.comparisons import claims, compare, plan
from selective_t5x.errors import UserError
from selective_t5x.report import statistics, tables
from selective_t5x.report.statistics import spread
from tests.support import fake_training

REFERENCES = {'base': 'base', 'a': 'base', 'b': 'base'}
STOPPING = claims.Stopping(margin=0.01, max_seeds=6)


def results(**gaps):
  """Results of one task: a loss of 4 and gaps to it."""
  count = max(map(len, gaps.values()))
  base = [4.0 + seed / 8 for seed in range(count)]
  entries = [{'task': 't', 'variant': 'base', 'metrics': {'l': spread(base)}}]
  for name, of_variant in gaps.items():
    own = base[: len(of_variant)]
    values = [x + gap for x, gap in zip(own, of_variant, strict=True)]
    entries.append(
      {'task': 't', 'variant': name, 'metrics': {'l': spread(values, own)}}
    )
  statistics.correct([e['metrics']['l'].get('difference', {}) for e in entries])
  return entries


def test_a_fixed_number_of_seeds_is_corrected_for_all_differences():
  # p = 0.037 alone, 0.074 for two.
  entries = results(a=[-0.1, -0.14, -0.2], b=[0.1, -0.1, 0.05])
  lines = claims.lines(entries, REFERENCES, 'l')
  assert 'it is not shown that the losses of a and base differ' in lines[0]
  assert 'p = 0.037, corrected for 2 differences 0.074' in lines[0]
  alone = claims.lines(results(a=[-0.1, -0.14, -0.2]), REFERENCES, 'l')
  assert 'the loss of a is lower than that of base' in alone[0]


def test_added_seeds_end_with_lower_higher_the_same_or_open():
  def decided(**gaps):
    of = claims.decisions(results(**gaps), REFERENCES, 'l', STOPPING)
    return [how for how, _ in of.values()]

  small = [0.001, -0.0008, 0.0002, -0.0004, 0.0005, 0.0]
  assert decided(a=[-0.5, -0.51, -0.49], b=small) == ['lower', 'the same']
  assert decided(a=[0.5, 0.51, 0.49], b=[0.1, -0.3, 0.2]) == ['higher', 'open']
  # Two seeds, and a loss that is not finite, decide nothing.
  assert decided(a=[-0.5, -0.5]) == ['open']


def test_lines_of_added_seeds_say_what_they_rest_on():
  small = [0.001, -0.0008, 0.0002, -0.0004, 0.0005, 0.0]
  entries = results(a=[-0.5, -0.51, -0.49], b=small)
  lower, same = claims.lines(entries, REFERENCES, 'l', STOPPING)
  assert lower.startswith(
    't: the loss of a is lower than that of base by 0.5000; '
    '95 % confidence sequence -0.'
  )
  assert 'after 3 seeds' in lower
  assert lower.endswith('corrected for 2 differences.')
  assert 'the losses of b and base are the same within 0.01' in same
  (line,) = claims.lines(
    results(a=[0.1, -0.3, 0.2, 0.1, -0.1, 0.2]), REFERENCES, 'l', STOPPING
  )
  assert 'it is not shown that the losses of a and base differ' in line
  assert line.endswith('6 seeds are the most that were allowed.')


def test_decisions_stay_when_seeds_are_added():
  gaps = [-0.5, -0.51, -0.49, 3.0, -4.0, 2.0]
  for seeds in range(3, 7):
    of = claims.decisions(results(a=gaps[:seeds]), REFERENCES, 'l', STOPPING)
    assert of['t', 'a'][0] == 'lower', seeds


def test_seeds_are_added_until_each_variant_is_decided(
  setting, monkeypatch, capsys
):
  third = dataclasses.replace(
    setting['variants'][0], name='again', reference='baseline'
  )
  variants = [*setting['variants'], third]
  # Against baseline: selective gains 0.5 less 0.01 a seed; `again` differs by
  # noise of up to 0.02, in which 0.001 is no margin.
  noise = [0.0, 0.02, -0.01, 0.015, -0.02, 0.01, 0.0, 0.01]
  loss_at = {}

  def looks(cells, stopping):
    figures = read(cells, stopping)
    for result in figures['results']:
      if result['variant'] == 'again':
        metric = result['metrics'][figures['loss']]
        base = loss_at['baseline'][: len(metric['values'])]
        values = [x + y for x, y in zip(base, noise, strict=False)]
        metric |= spread(values, base)
      else:
        values = result['metrics'][figures['loss']]['values']
        loss_at[result['variant']] = values
    seen.append(dict(figures['seeds_of']))
    return figures

  seen, read = [], compare.compare_cells
  monkeypatch.setattr(compare, 'compare_cells', looks)
  figures = compare.compare(
    setting['gin_files'],
    variants,
    output_dir=setting['output_dir'],
    program=fake_training.PROGRAM,
    stopping=claims.Stopping(margin=0.001, max_seeds=5),
  )
  assert seen[0] == {'baseline': 3, 'selective': 3, 'again': 3}
  # What is decided gets no more seeds; the reference has as many as any.
  assert seen[-1] == {'baseline': 5, 'selective': 3, 'again': 5}
  assert figures['stopping'] == {'margin': 0.001, 'max_seeds': 5}
  assert 'not decided yet, one more seed: baseline, again' in (
    capsys.readouterr().out
  )
  assert any('Seeds were added until' in c for c in figures['caveats'])
  assert figures['caveats'][0].startswith('3 to 5 seeds')
  assert len(list(setting['output_dir'].glob('selective-seed*'))) == 3
  text = tables.as_text(figures)
  assert 'the loss of selective is lower' in text

  # The same command trains nothing and says the same.
  starts = setting['output_dir'] / 'again-seed4' / 'starts.txt'
  compare.compare(
    setting['gin_files'],
    variants,
    output_dir=setting['output_dir'],
    program=fake_training.PROGRAM,
    stopping=claims.Stopping(margin=0.001, max_seeds=5),
  )
  assert seen[-1] == {'baseline': 5, 'selective': 3, 'again': 5}
  assert starts.read_text().count('start') == 1


def test_a_swept_reference_gets_seeds_for_its_own_variants():
  figures = {
    'stopping': {'margin': 0.01, 'max_seeds': 9},
    'references': {'b1': 'b1', 'a1': 'b1', 'b2': 'b2', 'a2': 'b2'},
  }
  counts = {'b1': 4, 'a1': 3, 'b2': 3, 'a2': 3}
  more = compare._with_references(['a1', 'a2'], figures, counts)
  assert set(more) == {'a1', 'a2', 'b2'}
  assert compare._with_references(['a1'], figures, counts) == ['a1']


@pytest.mark.parametrize(
  ('rule', 'message'),
  [
    ({'margin': 0.0}, '--margin=0.0: expected more than 0'),
    ({'max_seeds': 2}, '--max_seeds=2: expected 3 or more'),
  ],
)
def test_rules_that_cannot_be(rule, message):
  with pytest.raises(UserError, match=message):
    claims.Stopping(**rule)


def test_figures_know_the_variants_that_a_rule_needs(setting):
  cells = compare.cells_of(
    setting['gin_files'],
    setting['variants'],
    {'baseline': 2, 'selective': 1},
    [],
    setting['output_dir'],
  )
  assert [cell.name for cell in cells] == [
    plan.folder_name('baseline', 0),
    plan.folder_name('selective', 0),
    plan.folder_name('baseline', 1),
  ]
