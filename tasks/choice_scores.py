"""Accuracy of multiple-choice questions, from the scores of their choices.

An example is a choice. A question with a missing choice, because something cut
the stream of examples, is left out: with fewer choices it would be easier.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import t5.data.postprocessors
import t5.evaluation.metrics
from absl import logging

from selective_t5x.errors import UserError
from selective_t5x.tasks import metrics


class Target(NamedTuple):
  """The fields of an example for metrics; the first four are the t5 package's.

  Attributes:
    idx: (the question's number in the split, the choice's in the question).
    is_correct: whether this is the right choice.
    weight: of the question.
    tokens: number of the choice's tokens.
    characters: number of its characters, without the space before it.
    truncated: whether a part of context or choice did not fit the sequence.
    choices: number of choices of the question.
  """

  idx: tuple[int, int]
  is_correct: bool
  weight: float
  tokens: int
  characters: int
  truncated: bool
  choices: int


def target(score, example=None, is_target=False):
  """Returns the Target of an example, or the score: a seqio postprocessor."""
  processed = t5.data.postprocessors.rank_classification(
    score,
    example=example,
    is_target=is_target,
    passthrough_feature_keys=('characters', 'truncated', 'choices'),
  )
  return Target(*processed) if is_target else processed


def choice_accuracy(
  targets: Sequence[Target], scores: metrics.Scores
) -> dict[str, float]:
  """Returns the share of questions whose likeliest choice is the right one.

  `accuracy` is `accuracy_per_character`: the log-likelihood of a choice is
  divided by its characters. Raw sums favour short choices, and tokens differ
  between vocabularies, so that two models could not be compared by them.

  Returns:
    accuracy, accuracy_raw, accuracy_per_character, accuracy_per_token, chance
    (of a uniform guess) and truncated (the share of choices that did not fit
    the sequence), each 0 to 1, and questions, their number. They cover complete
    questions only; a warning says how many are left out.

  Raises:
    UserError: no question is complete, or a score is not a number.
  """
  log_likelihoods = metrics.log_likelihoods(scores)
  complete = _of_whole_questions(targets)
  targets = [targets[i] for i in complete]
  log_likelihoods = log_likelihoods[complete]
  no_number = np.count_nonzero(np.isnan(log_likelihoods))
  if no_number:
    raise UserError(
      f'the scores of {no_number} of {len(targets)} choices are not a number: '
      'none of them is the likeliest'
    )

  def accuracy(lengths):
    measured = t5.evaluation.metrics.rank_classification(
      [(*target[:3], 1) for target in targets],
      log_likelihoods / np.asarray(lengths, np.float64),
    )
    return float(measured['accuracy']) / 100

  per_character = accuracy([max(int(t.characters), 1) for t in targets])
  choices = {int(t.idx[0]): int(t.choices) for t in targets}
  return {
    'accuracy': per_character,
    'accuracy_raw': accuracy(np.ones(len(targets))),
    'accuracy_per_character': per_character,
    'accuracy_per_token': accuracy([max(t.tokens, 1) for t in targets]),
    'chance': float(np.mean([1 / count for count in choices.values()])),
    'truncated': float(np.mean([t.truncated for t in targets])),
    'questions': len(choices),
  }


def _of_whole_questions(targets: Sequence[Target]) -> list[int]:
  """Returns the indices of the targets of complete questions.

  A choice that occurs twice, in a repeated split, counts once.
  """
  by_question: dict[int, dict[int, int]] = {}
  for index, target in enumerate(targets):
    question, choice = map(int, target.idx)
    by_question.setdefault(question, {}).setdefault(choice, index)
  complete = [
    sorted(indices.values())
    for indices in by_question.values()
    if len(indices) == targets[next(iter(indices.values()))].choices
  ]
  if not complete:
    raise UserError(
      f'{len(targets)} choices hold no whole question: raise EVAL_EXAMPLES, '
      'which counts choices, or name EVAL_QUESTIONS in its place'
    )
  if len(complete) < len(by_question):
    logging.warning(
      '%d of %d questions are left out: not all of their choices are among '
      'the %d examples.',
      len(by_question) - len(complete),
      len(by_question),
      len(targets),
    )
  return sorted(index for indices in complete for index in indices)
