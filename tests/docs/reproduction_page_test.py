"""docs/reproduction.md says what the kept figures say, and no more."""

import pathlib
import re

import pytest

from selective_t5x.errors import UserError
from selective_t5x.studies import page, reproduction, where_it_loses
from selective_t5x.studies.claims import CLAIMS

DOCS = pathlib.Path(__file__).resolve().parents[2] / 'docs'
STUDIES = DOCS / 'studies'


def test_the_tables_are_those_of_the_kept_figures():
  decided = page.judged(reproduction.choose(fast=False), STUDIES)
  assert {'memory_loss', 'downstream_tasks'} <= decided.keys()
  text = (DOCS / 'reproduction.md').read_text()
  assert text == page.with_tables(text, STUDIES)


def test_figures_of_every_experiment_have_a_place():
  experiments = {
    experiment
    for claim in CLAIMS.values()
    for experiment in (claim.experiment, claim.fast)
  }
  assert experiments - {None} <= page._FIGURES.keys()


def test_what_loses_is_what_the_kept_figures_say():
  text = (DOCS / 'where_it_loses.md').read_text()
  assert text == where_it_loses.text(STUDIES)
  for section in where_it_loses._SECTIONS:
    assert f'## {section}' in text
  # A claim that did not hold, and a variant that beats selection.
  assert 'differential_language_modelling' in text
  assert 'stick_breaking' in text.partition('below selection')[2]


def test_a_folder_that_is_not_there_is_named():
  with pytest.raises(UserError, match='nowhere: no such folder'):
    where_it_loses.main(['page.md', 'nowhere'])


def test_figures_of_earlier_versions_are_called_so():
  text = where_it_loses.text(STUDIES)
  for path, variants in page.EARLIER.items():
    there = (STUDIES / path).read_text()
    for variant, what in variants.items():
      assert f'"{variant}"' in there
      assert f'{variant}, {what}' in text


def test_links_lead_somewhere():
  for name in ('reproduction.md', 'choosing.md', 'where_it_loses.md'):
    for link in re.findall(r'\]\(([^)#:]+)', (DOCS / name).read_text()):
      assert (DOCS / link).exists(), link
