"""docs/reproduction.md says what the kept figures say, and no more.

  python -m tests.docs.reproduction_page_test

writes its two tables anew, from docs/studies/.
"""

import json
import pathlib
import re

from selective_t5x.studies import reproduction

DOCS = pathlib.Path(__file__).resolve().parents[2] / 'docs'
PAGE = DOCS / 'reproduction.md'
STUDIES = DOCS / 'studies'
# Where the figures of an experiment are: the first of these that has all that a
# claim needs.
FIGURES = {
  'variable_assignment': (
    'study/variable_assignment/comparison.json',
    'fast/variable_assignment/comparison.json',
  ),
  'copy': ('study/copy/comparison.json', 'fast/copy/comparison.json'),
  'parity': ('study/parity/comparison.json', 'fast/parity/comparison.json'),
  'parity_interleaved': ('fast_2/parity_interleaved/comparison.json',),
  'language_modelling': (
    'study/language_modelling/comparison.json',
    'pruning/comparison.json',
  ),
  'language_modelling_250_steps': (
    'fast_2/language_modelling_250_steps/comparison.json',
    'fast/language_modelling_250_steps/comparison.json',
  ),
  'language_modelling_even_heads_250_steps': (
    'fast_2/language_modelling_even_heads_250_steps/comparison.json',
  ),
  'pruning': ('pruning/pruning.json',),
  't5_span_corruption': (
    'study/t5_span_corruption/comparison.json',
    't5_span_corruption/comparison.json',
  ),
  'token_transition': ('token_transition/token_transition.json',),
}


# Variants of kept figures that are no longer what a claim means: this `ssa`
# started at alpha = 0.
STALE = {'fast/language_modelling_250_steps/comparison.json': {'ssa'}}


def kept(experiment, variants):
  """Returns what a rule reads, None where it is not kept.

  Args:
    experiment: of the claim.
    variants: those that the rule reads; none where it reads no comparison.
  """
  for name in FIGURES.get(experiment, ()):
    if (STUDIES / name).exists():
      figures = json.loads((STUDIES / name).read_text())
      if experiment == 'pruning':
        return figures['points']
      there = set(figures.get('variants', ())) - STALE.get(name, set())
      if not variants or set(variants) <= there:
        return figures
  return None


def verdicts(claims):
  """Returns the verdicts of the claims that the kept figures decide."""
  found = {}
  for name, claim in claims.items():
    figures = kept(claim.experiment, claim.rule.variants)
    if claim.experiment is None or figures:
      found[name] = claim.rule.judge(figures)
  return found


def with_tables(page):
  """Returns the page with the tables that the kept figures give."""
  for name, fast in (('verdicts', False), ('fast', True)):
    claims = reproduction.choose(fast)
    found = verdicts(claims)
    if not fast:
      # What the whole study has not decided, the fast one may have.
      fast_claims = reproduction.of_mode(fast=True)
      found_fast = verdicts(fast_claims)
      for claim in found_fast.keys() - found.keys():
        claims[claim], found[claim] = fast_claims[claim], found_fast[claim]
    table = reproduction.as_markdown(claims, found)
    start, end = f'<!-- {name} -->\n\n', f'\n<!-- end of {name} -->'
    before, rest = page.split(start)
    page = before + start + table + end + rest.split(end)[1]
  return page


def test_the_tables_are_those_of_the_kept_figures():
  found = verdicts(reproduction.choose(fast=False))
  assert {'memory_loss', 'downstream_tasks'} <= found.keys()
  page = PAGE.read_text()
  assert page == with_tables(page)


def test_links_lead_somewhere():
  for name in ('reproduction.md', 'choosing.md'):
    for link in re.findall(r'\]\(([^)#:]+)', (DOCS / name).read_text()):
      assert (DOCS / link).exists(), link


if __name__ == '__main__':
  PAGE.write_text(with_tables(PAGE.read_text()))
