"""LAMBADA: the last word of a passage, which needs more than its last sentence.

Source: Paperno et al., "The LAMBADA dataset: Word prediction requiring a broad
discourse context", ACL 2016, arXiv 1606.06031. The files are the makers' plain
text, a passage a line, or JSON lines with "text".

The literature reports the test passages, and every copy contains them. So that
one split name evaluates all benchmarks, `validation` is those passages too; the
makers' own development passages are the split `development`.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from selective_t5x.errors import UserError
from selective_t5x.tasks import choice_scores, metrics, questions, text_reader
from selective_t5x.tasks.questions import Files, Question, Tfds


def _question(record: Mapping[str, Any]) -> Question:
  """Returns the passage without its last word, and that word as only choice."""
  context, space, word = record['text'].rstrip().rpartition(' ')
  if not space:
    raise ValueError('expected a passage of more than one word')
  return Question((context.rstrip(),), (f' {word}',), 0)


def _passages(path: pathlib.Path) -> questions.Records:
  """Yields the lines of a file: all JSON or all plain, as the first line."""
  plain = [line for line in text_reader.lines(path) if line.text.strip()]
  if plain and _is_object(plain[0]):
    for line, record in text_reader.objects(path):
      yield line, {'text': text_reader.text_under('text', record, line)}
    return
  for line in plain:
    if _is_object(line):
      raise UserError(
        f'{line.where}: a JSON object in a file of plain text: expected all '
        'lines to be of one kind'
      )
    yield line, {'text': line.text}


def _is_object(line: text_reader.Line) -> bool:
  return line.text.lstrip().startswith('{')


def last_word(
  targets: Sequence[choice_scores.Target], scores: metrics.Scores
) -> dict[str, float]:
  """Returns how well the last words are predicted.

  Returns:
    accuracy: share of passages, 0 to 1, where greedy decoding writes the last
      word (it may go on to a longer word).
    perplexity: per word, exp of the mean negative log-likelihood.
    loss: that mean, in nats.
    truncated: share of passages whose beginning did not fit the sequence.
    passages: their number.
  """
  loss = -np.mean(metrics.log_likelihoods(scores))
  return {
    'accuracy': float(np.mean(metrics.is_argmax(scores))),
    'perplexity': float(np.exp(loss)),
    'loss': float(loss),
    'truncated': float(np.mean([target.truncated for target in targets])),
    'passages': len(targets),
  }


last_word.reads_argmax = True

_TEST = Files(['lambada_test.jsonl', 'lambada_test_plain_text.txt'])
questions.register(
  'lambada',
  questions.QuestionSource(
    'lambada',
    {
      'validation': _TEST,
      'test': _TEST,
      'development': Files(
        ['lambada_development.jsonl', 'lambada_development_plain_text.txt']
      ),
    },
    _question,
    read=_passages,
    tfds=Tfds(
      'lambada:1.0.0',
      # TFDS calls the development passages its training split.
      {'validation': 'test', 'test': 'test', 'development': 'train'},
      lambda example: {'text': example['passage'].decode()},
    ),
  ),
  last_word,
)
