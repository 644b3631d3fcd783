"""docs/reproduction.md says what the kept figures say, and no more."""

import pathlib
import re

from selective_t5x.studies import page, reproduction

DOCS = pathlib.Path(__file__).resolve().parents[2] / 'docs'
STUDIES = DOCS / 'studies'


def test_the_tables_are_those_of_the_kept_figures():
  decided = page.judged(reproduction.choose(fast=False), STUDIES)
  assert {'memory_loss', 'downstream_tasks'} <= decided.keys()
  text = (DOCS / 'reproduction.md').read_text()
  assert text == page.with_tables(text, STUDIES)


def test_links_lead_somewhere():
  for name in ('reproduction.md', 'choosing.md'):
    for link in re.findall(r'\]\(([^)#:]+)', (DOCS / name).read_text()):
      assert (DOCS / link).exists(), link
