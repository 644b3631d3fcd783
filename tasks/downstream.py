"""Eight multiple-choice benchmarks, and the mixture of them and LAMBADA.

    DATA_DIR=... python -m selective_t5x.main --run_mode=eval
      --gin_file=<run>/config.gin --gin_file=gin/runs/downstream.gin ...

Each function below turns an official record into a `Question`. The folders in
DATA_DIR and the files' official names are at the end of this file.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import seqio

from selective_t5x.tasks import lambada as lambada
from selective_t5x.tasks import questions
from selective_t5x.tasks.questions import Files, Question, Tfds

Record = Mapping[str, Any]


def _with_one_context(
  context: str, choices: Sequence[str], label: int
) -> Question:
  """Returns a question with one context; choices follow it after a space."""
  return Question(
    (context,) * len(choices), [f' {c.strip()}' for c in choices], label
  )


def _labelled(choices: Sequence[Record], answer: str) -> tuple[list[str], int]:
  """Returns the texts of [{'label', 'text'}] and the index of the answer."""
  labels = [choice['label'] for choice in choices]
  if answer not in labels:
    raise ValueError(
      f'answer {answer!r} is none of the labels {", ".join(labels)}'
    )
  return [choice['text'] for choice in choices], labels.index(answer)


def _index(label: Any, first: int, count: int) -> int:
  """Returns a label, one of `count` that count from `first`, as an index."""
  labels = [str(first + i) for i in range(count)]
  if str(label) not in labels:
    raise ValueError(f'label {label!r}: expected one of {", ".join(labels)}')
  return labels.index(str(label))


def hellaswag(record: Record) -> Question:
  """HellaSwag: the ending that continues the description of an activity."""
  context = f'{record["activity_label"]}: {record["ctx"]}'
  endings = [without_wikihow_markup(e) for e in record['endings']]
  label = _index(record['label'], 0, len(endings))
  return _with_one_context(without_wikihow_markup(context), endings, label)


def without_wikihow_markup(text: str) -> str:
  """Returns the text without WikiHow's [header], [title], [step] and so on.

  A [title] mark ends a title, so it becomes a full stop.
  """
  text = re.sub(r'(?<=\w)\s*\[title\]', '.', text)
  text = re.sub(r'\[[^\]]*\]', '', text)
  return re.sub(r' {2,}', ' ', text).strip()


def with_labels(record: Record) -> Question:
  """ARC: school science, three to five choices, labelled A to E or 1 to 5.

  CommonsenseQA: common sense about a concept, five choices.
  """
  question = record['question']
  choices, label = _labelled(question['choices'], record['answerKey'])
  return _with_one_context(
    f'Question: {question["stem"]}\nAnswer:', choices, label
  )


def openbookqa(record: Record) -> Question:
  """OpenBookQA: elementary science; a choice completes the stem."""
  question = record['question']
  choices, label = _labelled(question['choices'], record['answerKey'])
  return _with_one_context(question['stem'], choices, label)


def piqa(record: Record) -> Question:
  """PIQA: the one of two solutions that reaches a practical goal."""
  return _with_one_context(
    f'Question: {record["goal"]}\nAnswer:',
    [record['sol1'], record['sol2']],
    _index(record['label'], 0, 2),
  )


def siqa(record: Record) -> Question:
  """SIQA: what people do, feel and need; three choices, labelled 1-3."""
  return _with_one_context(
    f'{record["context"]}\nQuestion: {record["question"]}\nAnswer:',
    [record['answerA'], record['answerB'], record['answerC']],
    _index(record['label'], 1, 3),
  )


def winogrande(record: Record) -> Question:
  """WinoGrande: the one of two options that fills the blank.

  The options come before the text that tells them apart, so the text after
  the blank is scored, once after each option.
  """
  before, blank, after = record['sentence'].partition('_')
  if not blank:
    raise ValueError("'sentence' has no blank, '_'")
  # The file contains the answer; a label file repeats it.
  label = record.get('answer') or record['label']
  if record.get('label', label) != label:
    raise ValueError(f"label {record['label']!r} but 'answer' {label!r}")
  return Question(
    [before + record['option1'], before + record['option2']],
    [after, after],
    _index(label, 1, 2),
  )


def _text(value: Any) -> Any:
  """Returns a NumPy example of TFDS with str instead of bytes."""
  if isinstance(value, Mapping):
    return {key: _text(inner) for key, inner in value.items()}
  if isinstance(value, bytes):
    return value.decode()
  if hasattr(value, 'ndim') and value.ndim:
    return [_text(item) for item in value]
  return value


def _arc_from_tfds(example: Record) -> Record:
  """Returns an ARC record; TFDS stores labels as indices of A to E."""
  example = _text(example)
  letters = 'ABCDE'
  texts, labels = example['choices']['text'], example['choices']['label']
  choices = [
    {'text': text, 'label': letters[label]}
    for text, label in zip(texts, labels, strict=True)
  ]
  return {
    'question': {'stem': example['question'], 'choices': choices},
    'answerKey': letters[example['answerKey']],
  }


def _openbookqa_from_tfds(example: Record) -> Record:
  example = _text(example)
  question, letters = example['question'], 'ABCD'
  choices = [
    {'text': question[f'choice_{letter}'], 'label': letter}
    for letter in letters
  ]
  return {
    'question': {'stem': question['stem'], 'choices': choices},
    'answerKey': letters[example['answerKey']],
  }


def _hellaswag_from_tfds(example: Record) -> Record:
  example = _text(example)
  return {**example, 'ctx': example['context']}


def _winogrande_from_tfds(example: Record) -> Record:
  example = _text(example)
  return {**example, 'label': str(example['label'] + 1)}


_SPLITS = {'train': 'train', 'validation': 'validation'}
_TESTED = {**_SPLITS, 'test': 'test'}
_NO_ANSWERS = Files((), labelled=False)


def _arc_source(name: str) -> questions.QuestionSource:
  return questions.QuestionSource(
    'arc',
    {
      'train': Files([f'{name}-Train.jsonl']),
      'validation': Files([f'{name}-Dev.jsonl']),
      'test': Files([f'{name}-Test.jsonl']),
    },
    with_labels,
    tfds=Tfds(f'ai2_arc/{name}:1.0.0', _TESTED, _arc_from_tfds),
  )


_SOURCES = {
  'hellaswag': questions.QuestionSource(
    'hellaswag',
    {
      'train': Files(['hellaswag_train.jsonl']),
      'validation': Files(['hellaswag_val.jsonl']),
      'test': _NO_ANSWERS,
    },
    hellaswag,
    tfds=Tfds('hellaswag:1.1.0', _SPLITS, _hellaswag_from_tfds),
  ),
  'arc_easy': _arc_source('ARC-Easy'),
  'arc_challenge': _arc_source('ARC-Challenge'),
  'piqa': questions.QuestionSource(
    'piqa',
    {
      'train': Files(['train.jsonl'], ['train-labels.lst']),
      'validation': Files(
        ['valid.jsonl', 'dev.jsonl'], ['valid-labels.lst', 'dev-labels.lst']
      ),
      'test': _NO_ANSWERS,
    },
    piqa,
    tfds=Tfds('piqa:1.0.0', _SPLITS, _text),
  ),
  'openbookqa': questions.QuestionSource(
    'openbookqa',
    {
      'train': Files(['train.jsonl', 'train_complete.jsonl']),
      'validation': Files(['dev.jsonl', 'dev_complete.jsonl']),
      'test': Files(['test.jsonl', 'test_complete.jsonl']),
    },
    openbookqa,
    tfds=Tfds('openbookqa:0.1.0', _TESTED, _openbookqa_from_tfds),
  ),
  'winogrande': questions.QuestionSource(
    'winogrande',
    {
      'train': Files(['train_xl.jsonl'], ['train_xl-labels.lst']),
      'validation': Files(['dev.jsonl'], ['dev-labels.lst']),
      'test': _NO_ANSWERS,
    },
    winogrande,
    tfds=Tfds(
      'winogrande:1.2.0',
      {'train': 'train_xl', 'validation': 'validation'},
      _winogrande_from_tfds,
    ),
  ),
  'commonsenseqa': questions.QuestionSource(
    'commonsenseqa',
    {
      'train': Files(['train_rand_split.jsonl']),
      'validation': Files(['dev_rand_split.jsonl']),
      'test': _NO_ANSWERS,
    },
    with_labels,
  ),
  'siqa': questions.QuestionSource(
    'siqa',
    {
      'train': Files(['train.jsonl'], ['train-labels.lst']),
      'validation': Files(['dev.jsonl'], ['dev-labels.lst']),
    },
    siqa,
  ),
}

for _name, _source in _SOURCES.items():
  questions.register(_name, _source, questions.choice_accuracy)
seqio.MixtureRegistry.add('downstream', [*_SOURCES, 'lambada'], default_rate=1)
