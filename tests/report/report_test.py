import csv
import html.parser
import io
import re

import matplotlib.colors
import numpy as np
import PIL.Image
import PIL.ImageColor
import pytest
from tensorboard.backend.event_processing import event_accumulator

from selective_t5x.report import events, page, plots, tables
from selective_t5x.report.statistics import spread

HOSTILE = '<script>alert("x")</script> & \'quotes\' </td> \u202eright-to-left'
VOID = {'meta', 'link', 'br', 'img', 'hr', 'input'}


def comparison(seeds=1, task='toy', **change):
  """A comparison of two variants on one task."""
  losses = {
    'baseline': [2.0 + 0.1 * seed for seed in range(seeds)],
    'selective': [1.5 + 0.15 * seed for seed in range(seeds)],
  }

  def metrics(variant):
    reference = losses['baseline'] if variant != 'baseline' else None
    both = spread(losses[variant], reference)
    return {'loss_per_token': both, 'accuracy': both}

  run = {
    'engine': 'embedded',
    'python': '3.11',
    'packages': {'jax': '0.10.2'},
    'device': {'count': 4, 'kind': 'TPU v5', 'cpu_cores': 2},
    'git': {'commit': 'c0ffee', 'dirty': True},
    'started': '2030-01-01T00:00:00+00:00',
  }
  return {
    'variants': ['baseline', 'selective'],
    'references': {'baseline': 'baseline', 'selective': 'baseline'},
    'claims': ['toy: a claim'],
    'seeds': list(range(seeds)),
    'loss': 'loss_per_token',
    'train_task': task,
    'caveats': ['One seed: no claim about significance.'],
    'results': [
      {'task': task, 'variant': v, 'step': 2000, 'metrics': metrics(v)}
      for v in losses
    ],
    'equal_time': {
      'train_seconds': 90.0,
      'results': [
        {'task': task, 'variant': v, 'loss': metrics(v)['accuracy']}
        for v in losses
      ],
    },
    'equal_parameters': {'agree': True, 'parameters': dict.fromkeys(losses, 1)},
    'costs': [
      {
        'variant': v,
        'parameters': 12345,
        'steps': 2000,
        'flops_per_step': 2_500_000_000,
        'step_bytes': 3 * 2**20,
        'steps_per_second': spread([8.0] * seeds),
        'tokens_per_second': spread([8000.4] * seeds),
        'train_seconds': spread([90.0] * seeds),
        'peak_rss_bytes': spread([1000 * 2**20] * seeds),
      }
      for v in losses
    ],
    'curves': [
      {
        'variant': v,
        'seed': seed,
        'task': name,
        'step': [1000, 2000],
        'train_seconds': [45.0, 90.0],
        'loss': [3.0, losses[v][seed]],
        'accuracy': [None, 0.5],
      }
      for v in losses
      for seed in range(seeds)
      for name in ('train', task)
    ],
    'cells': [
      {
        'name': f'{v}-seed0',
        'variant': v,
        'seed': 0,
        'command': f'python -m selective_t5x.main --gin_file={v}.gin',
        'run': run,
      }
      for v in losses
    ],
    'differences': {'ATTENTION': {'baseline': '@a', 'selective': None}},
    'used_differences': {'a.scale': {'baseline': '0.5', 'selective': None}},
    **change,
  }


class Checker(html.parser.HTMLParser):
  """Checks that tags close in order; collects attributes and shown text."""

  def __init__(self, text):
    super().__init__()
    self.stack, self.attributes, self.shown, self.tags = [], [], [], []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs
    if tag not in VOID:
      self.stack.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.attributes += attrs

  def handle_endtag(self, tag):
    assert self.stack.pop() == tag

  def handle_data(self, data):
    self.shown.append(data)


def make_page(*comparisons, title='A title', text='', command='run it'):
  sections = [(title, text, c) for c in comparisons]
  return page.page(title, text, command, sections)


def test_live_keys_are_a_column_where_a_run_counted_them():
  def columns(figures):
    *_, step = tables.tables(figures)
    return step

  figures = comparison()
  assert 'keys read by a query' not in columns(figures).header
  for cost, keys in zip(figures['costs'], (None, 41.6), strict=True):
    cost['live_keys'] = spread([keys])
  step = columns(figures)
  at = step.header.index('keys read by a query')
  assert [row[at] for row in step.rows] == ['n/a', '42']


def test_the_page_is_well_formed_and_needs_no_network():
  text = make_page(comparison(), comparison(seeds=3, task='other'))
  checker = Checker(text)
  assert checker.stack == []
  assert 'script' not in checker.tags
  for name, value in checker.attributes:
    if name in ('src', 'href', 'xlink:href', 'data', 'srcset', 'action'):
      assert value.startswith('#'), f'{name}={value}'
  assert not re.search(r'url\((?!#)|@import', text)


def test_ids_on_the_page_are_unique():
  text = make_page(comparison(), comparison(), comparison(seeds=3))
  ids = [value for name, value in Checker(text).attributes if name == 'id']
  assert ids and len(ids) == len(set(ids))
  used = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
  assert used and set(used) <= set(ids)


def test_hostile_text_is_shown_as_text():
  hostile = comparison(
    task=HOSTILE,
    claims=[HOSTILE],
    caveats=[HOSTILE],
    differences={HOSTILE: {'baseline': HOSTILE, 'selective': None}},
    used_differences={HOSTILE: {'baseline': HOSTILE, 'selective': None}},
  )
  hostile['cells'][0]['command'] = HOSTILE
  hostile['cells'][0]['run'] = {
    **hostile['cells'][0]['run'],
    'engine': HOSTILE,
  }
  text = make_page(hostile, title=HOSTILE, text=HOSTILE, command=HOSTILE)
  checker = Checker(text)
  assert checker.stack == []
  assert 'script' not in checker.tags
  assert ''.join(checker.shown).count(HOSTILE) >= 12


def test_the_page_says_what_ran_and_how_to_do_it_again():
  shown = ''.join(Checker(make_page(comparison())).shown)
  for fact in (
    'embedded',
    '4 x TPU v5',
    'jax 0.10.2',
    'c0ffee with uncommitted changes',
    'toy: a claim',
    'One seed: no claim about significance.',
    'python -m selective_t5x.main --gin_file=selective.gin',
    'run it',
    '(not set)',
    '1.5000',
    '12,345',
    'a.scale',
  ):
    assert fact in shown


def test_a_run_without_a_record_is_said_to_have_none():
  figures = comparison()
  for cell in figures['cells']:
    cell['run'] = {}
  assert 'none was written' in make_page(figures)


def test_text_tables_have_the_figures_in_aligned_columns():
  text = tables.as_text(comparison())
  lines = text.splitlines()
  assert lines[0] == 'toy, step 2,000'
  assert lines[1].split() == ['variant', 'loss', '(nats/token)', 'accuracy']
  assert lines[2].split() == ['baseline', '2.0000', '2.0000']
  assert lines[3].split() == ['selective', '1.5000', '1.5000']
  assert lines[4].split()[-2:] == ['-0.5000', '-0.5000']
  assert len({len(line) for line in lines[1:5]}) == 1
  assert lines[-3] == 'toy: a claim'
  assert lines[6] == 'loss (nats/token) at equal train time, 1.50 minutes'
  assert lines[7].split() == ['variant', 'toy']
  assert lines[9].split() == ['selective', '1.5000']
  cost = next(i for i, line in enumerate(lines) if line == 'cost')
  cells = ['selective', '12,345', '2,000', '8.00', '8,000', '1.50']
  assert lines[cost + 3].split() == cells
  assert lines[-5].split() == ['selective', '2.50', '3.0', '1,000']
  assert lines[-1] == 'One seed: no claim about significance.'


def test_several_seeds_show_their_range_and_test():
  row = tables.tables(comparison(seeds=3))[0].rows
  assert row[0][1] == '2.1000 [2.0000, 2.2000]'
  assert re.fullmatch(r'-0\.4500 \[-0\.5000, -0\.4000\] p=0\.0\d+', row[2][1])


def test_what_is_not_known_is_not_a_number():
  figures = comparison()
  figures['results'][0]['metrics']['accuracy'] = spread([None])
  figures['costs'][0] |= dict.fromkeys(
    ('parameters', 'flops_per_step', 'step_bytes')
  )
  figures['costs'][0]['tokens_per_second'] = spread([None])
  figures['equal_time'] = figures['used_differences'] = None
  result = tables.tables(figures)
  assert result[0].rows[0][2] == 'n/a'
  unknown = ('n/a', '2,000', '8.00', 'n/a', '1.50')
  assert result[-2].rows[0] == ('baseline', *unknown)
  assert result[-1].rows[0] == ('baseline', 'n/a', 'n/a', '1,000')
  assert not any('equal' in table.title for table in result)
  assert 'A run did not write the values' in make_page(figures)


def test_csv_has_every_point():
  rows = list(csv.DictReader(io.StringIO(tables.curves_csv(comparison(2)))))
  assert len(rows) == 2 * 2 * 2 * 2
  assert rows[0] == {
    'variant': 'baseline',
    'seed': '0',
    'task': 'train',
    'step': '1000',
    'train_seconds': '45.0',
    'loss_per_token': '3.0',
    'accuracy': '',
  }


@pytest.mark.parametrize('train_task', ['toy', 'another', None])
def test_a_panel_for_each_task_and_metric(train_task):
  figure = plots.learning_curves(comparison(2, train_task=train_task))
  rows = 1 if train_task == 'toy' else 2
  assert len(figure.axes) == 2 * rows
  losses = figure.axes[-2]
  assert losses.get_ylabel() == 'loss (nats/token)'
  assert losses.get_xlabel() == 'steps'
  # Lines of evaluations go through the mean over seeds.
  dotted = [line for line in losses.lines if line.get_marker() == 'o']
  assert [line.get_ydata()[-1] for line in dotted] == pytest.approx(
    [2.05, 1.575]
  )


def test_a_picture_of_256_colours_keeps_white_and_the_colours_of_the_lines():
  figure = plots.learning_curves(comparison())
  drawn = [line.get_color() for axes in figure.axes for line in axes.lines]
  with PIL.Image.open(io.BytesIO(plots.png(figure))) as picture:
    assert picture.mode == 'P'
    colours = {colour for _, colour in picture.convert('RGB').getcolors()}
  assert (255, 255, 255) in colours
  for colour in {matplotlib.colors.to_hex(c) for c in drawn}:
    pure = np.array(PIL.ImageColor.getrgb(colour))
    assert min(np.abs(pure - other).max() for other in colours) <= 8


def test_points_that_are_not_finite_are_left_out():
  axes = plots.learning_curves(comparison()).axes
  dotted = [line for line in axes[1].lines if line.get_marker() == 'o']
  assert list(dotted[0].get_xdata()) == [2000]


def test_svg_takes_its_colours_from_the_page():
  text = plots.svg(plots.learning_curves(comparison()), 'one')
  assert 'currentColor' in text and 'var(--line)' in text
  assert plots._INK not in text and plots._GRID not in text
  assert '<style' not in text and 'metadata' not in text


def test_tensorboard_has_the_mean_curves_and_their_picture(tmp_path):
  figures = comparison(2)
  picture = plots.png(plots.learning_curves(figures))
  for _ in range(2):  # Written again, it replaces the first.
    events.write(tmp_path, figures, picture)
  loader = event_accumulator.EventAccumulator(str(tmp_path))
  loader.Reload()
  points = loader.Scalars('toy/loss/selective')
  assert [point.step for point in points] == [1000, 2000]
  assert [p.value for p in points] == pytest.approx([3.0, (1.5 + 1.65) / 2])
  # Not where a seed has no value.
  (accuracy,) = loader.Scalars('toy/accuracy/baseline')
  assert (accuracy.step, accuracy.value) == (2000, 0.5)
  (image,) = loader.Images('learning_curves')
  assert image.encoded_image_string == picture
  assert (image.step, image.width) == (2000, 1350)
