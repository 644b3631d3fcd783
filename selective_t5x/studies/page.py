r"""Writes the tables of docs/reproduction.md from the figures in docs/studies.

python -m selective_t5x.studies.page docs/reproduction.md docs/studies
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from selective_t5x.cli import exits
from selective_t5x.errors import UserError
from selective_t5x.runs.files import read_json
from selective_t5x.studies import reproduction
from selective_t5x.studies.claims import Claim
from selective_t5x.studies.experiments import PRUNING
from selective_t5x.studies.verdicts import Verdict

# {experiment: files of figures}. The first file with all variants of a claim is
# used.
_FIGURES = {
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
# Variants in old figures that no longer match a claim: this `ssa` started at
# alpha = 0.
_STALE = {'fast/language_modelling_250_steps/comparison.json': {'ssa'}}


def with_tables(text: str, studies: pathlib.Path) -> str:
  """Returns the text of the page with new tables.

  Args:
    text: the present text of the page.
    studies: the folder of the figures, see `keep`.
  """
  for name, fast in (('verdicts', False), ('fast', True)):
    claims = reproduction.choose(fast)
    verdicts = judged(claims, studies)
    if not fast:
      # The fast study may decide claims that the whole study has not.
      fast_claims = reproduction.of_mode(fast=True)
      fast_verdicts = judged(fast_claims, studies)
      for claim in fast_verdicts.keys() - verdicts.keys():
        claims[claim] = fast_claims[claim]
        verdicts[claim] = fast_verdicts[claim]
    start, end = f'<!-- {name} -->\n\n', f'\n<!-- end of {name} -->'
    before, rest = text.split(start)
    table = reproduction.as_markdown(claims, verdicts)
    text = before + start + table + end + rest.split(end)[1]
  return text


def judged(
  claims: Mapping[str, Claim], studies: pathlib.Path
) -> dict[str, Verdict]:
  """Returns the verdicts of the claims that have figures."""
  verdicts = {}
  for name, claim in claims.items():
    figures = _figures(studies, claim.experiment, claim.rule.variants)
    if claim.experiment is None or figures:
      verdicts[name] = claim.rule.judge(figures)
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
      there = set(figures.get('variants', ())) - _STALE.get(name, set())
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
