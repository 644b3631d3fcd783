r"""Writes the tables of docs/reproduction.md from the figures in docs/studies.

python -m selective_t5x.studies.page docs/reproduction.md docs/studies
"""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from selective_t5x.cli import exits
from selective_t5x.errors import UserError
from selective_t5x.report import tables
from selective_t5x.runs.files import read_json
from selective_t5x.studies import evidence, record
from selective_t5x.studies.claims import Claim
from selective_t5x.studies.evidence import Verdict
from selective_t5x.studies.experiments import PRUNING

# {experiment: files of figures}. The first file with all variants of a claim is
# used.
_FIGURES = {
  'variable_assignment': (
    'study/variable_assignment/comparison.json',
    'fast/variable_assignment/comparison.json',
  ),
  'copy': ('study/copy/comparison.json', 'fast/copy/comparison.json'),
  'parity': (
    'parity_more/parity/comparison.json',
    'fast/parity/comparison.json',
  ),
  'parity_3000_steps': (
    'study/parity_3000_steps/comparison.json',
    'parity_more/parity_3000_steps/comparison.json',
  ),
  'parity_interleaved': (
    'study/parity_interleaved/comparison.json',
    'fast_2/parity_interleaved/comparison.json',
  ),
  'language_modelling': (
    'study/language_modelling/comparison.json',
    'pruning/comparison.json',
  ),
  'language_modelling_250_steps': (
    'relu_more/language_modelling_250_steps/comparison.json',
    'ssa_more/language_modelling_250_steps/comparison.json',
    'fast_3/language_modelling_250_steps/comparison.json',
    'fast_2/language_modelling_250_steps/comparison.json',
    'fast/language_modelling_250_steps/comparison.json',
  ),
  'language_modelling_even_heads': (
    'study/language_modelling_even_heads/comparison.json',
  ),
  'language_modelling_even_heads_250_steps': (
    'fast_3/language_modelling_even_heads_250_steps/comparison.json',
    'fast_2/language_modelling_even_heads_250_steps/comparison.json',
  ),
  'pruning': ('pruning/pruning.json',),
  't5_span_corruption': (
    'study/t5_span_corruption/comparison.json',
    't5_span_corruption/comparison.json',
  ),
  'token_transition': ('token_transition/token_transition.json',),
}
# Variants of earlier versions in kept figures: what they were. They decide no
# claim.
EARLIER = {
  'fast/language_modelling_250_steps/comparison.json': {
    'ssa': 'started at alpha = 0',
    'differential': 'with each head cut in two',
  }
}


def with_tables(text: str, studies: pathlib.Path) -> str:
  """Returns the text of the page with new tables.

  Args:
    text: the present text of the page.
    studies: the folder of the figures, see `keep`.
  """
  for name, fast in (('verdicts', False), ('fast', True)):
    claims, verdicts = decided(studies, fast)
    text = replaced(text, name, record.as_markdown(claims, verdicts))
  return replaced(text, 'provenance', provenance(studies))


def decided(
  studies: pathlib.Path, fast: bool = False
) -> tuple[dict[str, Claim], dict[str, Verdict]]:
  """Returns the claims of a table, and the corrected verdicts of those decided.

  Args:
    studies: the folder of the figures, see `keep`.
    fast: whether this is `make study-fast`. Its other claims count for the
      correction too. They also decide claims that the whole study has not.
  """
  fast_claims = record.of_mode(fast=True)
  fast_verdicts = judged(fast_claims, studies)
  claims = record.choose(fast)
  verdicts = fast_verdicts if fast else judged(claims, studies)
  if not fast:
    for claim in fast_verdicts.keys() - verdicts.keys():
      claims[claim] = fast_claims[claim]
      verdicts[claim] = fast_verdicts[claim]
    verdicts = {n: verdicts[n] for n in claims if n in verdicts}
  return claims, evidence.corrected(verdicts, record.tested())


def replaced(text: str, name: str, table: str) -> str:
  """Returns a page with another table between the marks of this name."""
  start, end = f'<!-- {name} -->\n\n', f'\n<!-- end of {name} -->'
  before, rest = text.split(start)
  return before + start + table + end + rest.split(end)[1]


def provenance(studies: pathlib.Path) -> str:
  """Returns a table of what the figures of each variant come from.

  Args:
    studies: the folder of the figures, see `keep`.
  """
  rows = []
  for path in sorted(studies.rglob('comparison.json')):
    by_variant: dict[str, list[dict[str, Any]]] = {}
    for cell in read_json(path)['cells']:
      by_variant.setdefault(cell['variant'], []).append(cell)
    for variant, cells in by_variant.items():
      prints = [cell.get('fingerprints') or {} for cell in cells]
      commits = [(cell.get('git') or {}).get('commit') or '' for cell in cells]
      rows.append(
        (
          str(path.parent.relative_to(studies)),
          variant,
          str(len(cells)),
          _all_of(commit[:10] for commit in commits),
          *(
            _all_of(of_run.get(name) or '' for of_run in prints)
            for name in ('bindings', 'data', 'program')
          ),
        )
      )
  header = (
    *('figures', 'variant', 'seeds', 'commit'),
    *('bindings', 'data', 'program'),
  )
  table = tables.Table('', header, tuple(rows))
  return tables.markdown(table).partition('\n\n')[2]


def _all_of(texts: Iterable[str]) -> str:
  """Returns the distinct texts; an empty one is 'not recorded'."""
  return ', '.join(dict.fromkeys(text or 'not recorded' for text in texts))


def judged(
  claims: Mapping[str, Claim], studies: pathlib.Path
) -> dict[str, Verdict]:
  """Returns the verdicts of the claims that have figures, each alone."""
  verdicts = {}
  for name, claim in claims.items():
    figures = _figures(studies, claim.experiment, claim.rule.variants)
    if claim.experiment is None or figures:
      sequential = isinstance(figures, dict) and bool(figures.get('stopping'))
      verdicts[name] = claim.rule.judge(figures, sequential=sequential)
  return verdicts


def _figures(studies, experiment, variants) -> Any:
  """Returns the figures that a rule reads; None if there are none.

  Args:
    studies: the folder of the figures.
    experiment: the experiment of the claim.
    variants: the variants that the rule reads; empty if it reads no comparison.
  """
  for name in _FIGURES.get(experiment, ()):
    if (studies / name).exists():
      figures = read_json(studies / name)
      if experiment == PRUNING:
        return figures['points']
      there = set(figures.get('variants', ())) - EARLIER.get(name, {}).keys()
      if not variants or set(variants) <= there:
        return figures
  return None


def main(argv: Sequence[str]) -> None:
  """Runs the command."""
  if len(argv) != 2:
    raise UserError('expected the page and the folder of the figures')
  file, studies = map(pathlib.Path, argv)
  text = with_tables(file.read_text('utf-8'), studies)
  file.write_text(text, encoding='utf-8')


if __name__ == '__main__':
  exits.run_main(main)
