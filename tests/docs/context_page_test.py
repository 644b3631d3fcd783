"""docs/forgetting.md shows the figures of the kept studies of contexts."""

import json
import pathlib

import pytest

from selective_t5x.report import tables
from selective_t5x.studies import context

DOCS = pathlib.Path(__file__).resolve().parents[2] / 'docs'
STUDIES = sorted((DOCS / 'studies').glob('context*'))


def _contexts(study):
  return json.loads((study / 'context.json').read_text())['contexts']


def test_there_are_such_studies():
  assert STUDIES


@pytest.mark.parametrize('study', STUDIES, ids=lambda path: path.name)
def test_the_table_is_that_of_the_figures_and_on_the_page(study):
  table = context.table(_contexts(study))
  assert (study / 'context.txt').read_text() == tables.text(table)
  assert tables.markdown(table) in (DOCS / 'forgetting.md').read_text()


@pytest.mark.parametrize('study', STUDIES, ids=lambda path: path.name)
def test_losses_are_those_of_the_comparisons(study):
  for name, figures in _contexts(study).items():
    path = study / f'context_{name}' / 'comparison.json'
    comparison = json.loads(path.read_text())
    losses = {
      result['variant']: result['metrics'][comparison['loss']]['values']
      for result in comparison['results']
    }
    # More seeds may be trained than have their budgets searched.
    for variant, loss in figures['loss'].items():
      assert loss['values'] == losses[variant][: len(loss['values'])]
