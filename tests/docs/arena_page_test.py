"""docs/arena.md and docs/choosing.md show the figures of docs/studies/arena."""

import json
import pathlib
import re

from selective_t5x.report import arena as report
from selective_t5x.report import tables
from selective_t5x.studies import arena_figures

DOCS = pathlib.Path(__file__).resolve().parents[2] / 'docs'
STUDY = DOCS / 'studies' / 'arena'
ARENA = json.loads((STUDY / 'arena.json').read_text())
FIGURES = ARENA['figures']


def test_the_figures_are_those_of_the_cells():
  complete = FIGURES['complete']
  summary = arena_figures.summary(ARENA['cells'], complete=complete)
  assert summary == FIGURES


def test_the_table_is_that_of_the_figures():
  assert (STUDY / 'arena.txt').read_text() == report.text(FIGURES) + '\n'


def test_the_tables_of_the_page_are_those_of_the_figures():
  page = (DOCS / 'arena.md').read_text()
  models = report.models_of(FIGURES)
  shown = [report.of_model(FIGURES, model) for model in models]
  for table in (*shown, report.gates(FIGURES)):
    assert tables.markdown(table) in page
  for verdict in report.verdicts(FIGURES):
    assert verdict in page


def test_numbers_of_the_recommendations_are_in_the_table():
  page = (DOCS / 'choosing.md').read_text()
  section = page.partition('## Which policy, which budget')[2]
  section = section.partition('\n## ')[0]
  assert 'studies/arena' in section
  numbers = re.findall(r'\d\.\d{3,4}\b', section)
  assert len(numbers) > 5
  text = (STUDY / 'arena.txt').read_text()
  text += ''.join(
    tables.text(report.of_model(FIGURES, model))
    for model in report.models_of(FIGURES)
  )
  assert not [number for number in numbers if number not in text]
