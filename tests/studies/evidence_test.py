"""Verdicts of a study are corrected for its number of claims."""

import numpy as np
import pytest

from selective_t5x.report.statistics import spread
from selective_t5x.studies import evidence, verdicts
from selective_t5x.studies.evidence import (
  NOT_REPRODUCED,
  REPRODUCED,
  UNDECIDED,
  Evidence,
)


def judged(supports, refutes=1.0):
  return evidence.of_evidence('text', {}, Evidence(supports, refutes))


def test_a_claim_counts_at_its_level_of_holms_procedure():
  alone = {'a': judged(0.001), 'b': judged(1.0, 0.012), 'c': judged(0.04)}
  assert [v.verdict for v in alone.values()] == [
    REPRODUCED,
    NOT_REPRODUCED,
    REPRODUCED,
  ]
  together = evidence.corrected(alone, 4)
  assert {n: v.verdict for n, v in together.items()} == {
    'a': REPRODUCED,  # 4 x 0.001
    'b': NOT_REPRODUCED,  # 3 x 0.012
    'c': UNDECIDED,  # 2 x 0.04
  }
  assert together['c'].numbers['p_corrected'] == pytest.approx(0.08)
  # A larger family of claims, still to be run, makes it harder.
  assert evidence.corrected(alone, 10)['b'].verdict == UNDECIDED
  # Corrected again, they stay.
  assert evidence.corrected(together, 4) == together


def test_counts_are_not_corrected():
  counts = evidence.Verdict(REPRODUCED, 'accuracy 1', {})
  got = evidence.corrected({'a': counts, 'b': judged(0.04)}, 1)
  assert got['a'] == counts and got['b'].verdict == REPRODUCED


def difference(gaps):
  reference = [4.0 + seed / 4 for seed in range(len(gaps))]
  values = [a + b for a, b in zip(reference, gaps, strict=True)]
  figures = {
    'loss': 'l',
    'results': [
      {'task': 't', 'variant': name, 'metrics': {'l': spread(of)}}
      for name, of in (('a', values), ('b', reference))
    ],
  }
  return verdicts.Lower('t', 'a', 'b').judge(figures)


def test_an_undecided_claim_says_how_many_seeds_it_would_take():
  got = evidence.corrected({'a': difference([-0.1, -0.04, -0.01])}, 1)['a']
  assert got.verdict == UNDECIDED
  seeds = got.numbers['seeds_needed']
  assert 5 < seeds < 40
  assert evidence.in_words(got).endswith(f'about {seeds} seeds would decide')
  # Seeds of this mean and spread do decide it, and a few less do not.
  gaps = np.array([-0.1, -0.04, -0.01])
  for number, verdict in ((seeds, REPRODUCED), (seeds - 1, UNDECIDED)):
    more = got.evidence.more(number)
    assert more.verdict(0.05) == verdict
  stretched = evidence.stretched(spread(gaps.tolist()), 9)['values']
  assert np.mean(stretched) == pytest.approx(gaps.mean())
  assert np.std(stretched, ddof=1) == pytest.approx(gaps.std(ddof=1))
  # More claims take more seeds.
  many = evidence.corrected({'a': difference([-0.1, -0.04, -0.01])}, 30)['a']
  assert many.numbers['seeds_needed'] > seeds
  hopeless = difference([-0.5, 0.5, -0.01])
  got = evidence.corrected({'a': hopeless}, 1)['a']
  assert got.numbers['seeds_needed'] is None
  assert 'more than 200 seeds' in evidence.in_words(got)


def test_verdicts_that_were_written_are_read_again():
  first = evidence.corrected({'a': difference([-0.1, -0.04, -0.01])}, 3)['a']
  again = evidence.read(first.verdict, first.text, first.numbers)
  corrected = evidence.corrected({'a': again}, 3)['a']
  assert corrected.numbers == first.numbers
  assert corrected.verdict == first.verdict


def judged_alone(gaps):
  """Without `more`, which is not needed here."""
  of = difference(gaps).evidence
  return judged(of.supports, of.refutes)


def test_few_studies_make_a_false_verdict():
  # Ten true nulls of three seeds: a loss that is neither lower nor not lower by
  # more than nothing; every REPRODUCED is false.
  rng = np.random.default_rng(0)
  false = 0
  for _ in range(150):
    gaps = rng.normal(scale=0.1, size=(10, 3)).tolist()
    study = {str(i): judged_alone(of) for i, of in enumerate(gaps)}
    got = evidence.corrected(study, 10).values()
    false += any(v.verdict == REPRODUCED for v in got)
  # Of one-sided tests at half the level: 2.5 % and three standard errors.
  assert false <= 150 * 0.065
