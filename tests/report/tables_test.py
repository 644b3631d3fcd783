"""Tables as text and Markdown."""

from selective_t5x.report import tables

TABLE = tables.Table(
  'costs',
  ('variant', 'loss', 'why', 'unknown'),
  (
    ('baseline', '4.1', 'no selection', ''),
    ('a', '-0.25 (-1 to +1)', '2 heads', ''),
  ),
)


def test_markdown_has_numbers_on_the_right_and_words_on_the_left():
  assert tables.markdown(TABLE).splitlines() == [
    '**costs**',
    '',
    '| variant   |             loss | why          |   unknown |',
    '|:----------|-----------------:|:-------------|----------:|',
    '| baseline  |              4.1 | no selection |           |',
    '| a         | -0.25 (-1 to +1) | 2 heads      |           |',
  ]


def test_text_is_aligned_below_its_title():
  assert tables.text(TABLE).splitlines() == [
    'costs',
    '  variant               loss           why  unknown',
    '  baseline               4.1  no selection',
    '  a         -0.25 (-1 to +1)       2 heads',
  ]
