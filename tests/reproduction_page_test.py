"""docs/reproduction.md says what the kept figures say, and no more."""

import json
import pathlib

from selective_t5x.studies import reproduction
from selective_t5x.studies.claims import CLAIMS

DOCS = pathlib.Path(__file__).resolve().parent.parent / 'docs'
STUDIES = DOCS / 'studies'
# Where the figures of an experiment are: the first of these that is there. The
# whole study has not been run as one yet.
FIGURES = {
  'variable_assignment': ('fast/variable_assignment/comparison.json',),
  'language_modelling': ('pruning/comparison.json',),
  'pruning': ('pruning/pruning.json',),
  't5_span_corruption': ('t5_span_corruption/comparison.json',),
  'token_transition': ('token_transition/token_transition.json',),
  None: (),
}


def kept(experiment):
  """Returns what the rules of an experiment read, None where it is not kept."""
  for name in FIGURES.get(experiment, ()):
    path = STUDIES / name
    if path.exists():
      figures = json.loads(path.read_text())
      return figures['points'] if name == 'pruning/pruning.json' else figures
  return None


def verdicts():
  """Returns the verdicts of all claims that the kept figures decide."""
  found = {}
  for name, claim in CLAIMS.items():
    figures = kept(claim.experiment)
    trained = {'variants': (), **figures} if isinstance(figures, dict) else {}
    missing = set(claim.rule.variants) - set(trained.get('variants', ()))
    if claim.experiment is None or (figures and not missing):
      found[name] = claim.rule.judge(figures)
  return found


def test_the_table_is_that_of_the_kept_figures():
  found = verdicts()
  assert 'memory_loss' in found and 'downstream_tasks' in found
  table = reproduction.as_markdown(CLAIMS, found)
  page = (DOCS / 'reproduction.md').read_text()
  assert table in page, f'expected in docs/reproduction.md:\n{table}'


def test_the_fast_table_is_the_one_that_was_kept():
  path = STUDIES / 'fast' / 'fast.md'
  page = (DOCS / 'reproduction.md').read_text()
  assert (path.read_text() in page) if path.exists() else 'Not run yet' in page
