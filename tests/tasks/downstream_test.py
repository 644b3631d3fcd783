"""The nine benchmarks: official files in, questions out, errors in one line."""

import json

import gin
import numpy as np
import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from selective_t5x.errors import UserError
from selective_t5x.tasks import choice_scores, downstream, tfds_source
from tests.support import smoke
from tools import official_sets as official

LENGTHS = {'inputs': 512, 'targets': 512}


@pytest.fixture(autouse=True)
def bytes_and_folder(tmp_path, monkeypatch):
  monkeypatch.delenv('DATA_DIR', raising=False)
  gin.parse_config(f"""
    vocabularies.Choice.kind = 'bytes'
    data_dir.root.path = '{tmp_path}'
  """)


def examples(task, split='validation', lengths=LENGTHS):
  """Returns the task's examples, and their texts as decoded tokens."""
  task = seqio.get_mixture_or_task(task)
  dataset = task.get_dataset(lengths, split=split, shuffle=False)
  vocabulary = seqio.ByteVocabulary()
  result = list(dataset.as_numpy_iterator())
  for example in result:
    for name in ('inputs', 'targets'):
      example[name] = vocabulary.decode(example[name].tolist())
  return result


def texts(task, **kwargs):
  """Returns [(context, choice, is_correct)]."""
  return [
    (e['inputs'], e['targets'], bool(e['is_correct']))
    for e in examples(task, **kwargs)
  ]


def lines(tmp_path, name, *records):
  official.write_lines(tmp_path / name, [json.dumps(r) for r in records])


def multiple_choice(answer, labels='ABCD', texts='wxyz'):
  choices = [
    {'label': label, 'text': text}
    for label, text in zip(labels, texts, strict=True)
  ]
  return {
    'id': 'q',
    'question': {'stem': 'Why?', 'choices': choices},
    'answerKey': answer,
  }


def test_hellaswag_joins_and_cleans_the_context(tmp_path):
  record = {
    'activity_label': 'Baking bread',
    'ctx': '[header] How to bake [title] Mix it. [step] Take flour.  Then',
    'endings': ['[substeps] stir.', 'b', 'c', '[title] Rest. [step] Wait.'],
    'label': 3,
  }
  lines(tmp_path, 'hellaswag/hellaswag_val.jsonl', record)
  context = 'Baking bread: How to bake. Mix it. Take flour. Then'
  assert texts('hellaswag') == [
    (context, ' stir.', False),
    (context, ' b', False),
    (context, ' c', False),
    (context, ' Rest. Wait.', True),
  ]


@pytest.mark.parametrize(
  'task, file',
  [
    ('arc_easy', 'arc/ARC-Easy/ARC-Easy-Dev.jsonl'),
    ('arc_challenge', 'arc/ARC-Challenge-Dev.jsonl'),
    ('commonsenseqa', 'commonsenseqa/dev_rand_split.jsonl'),
  ],
)
def test_choices_are_found_by_their_labels(tmp_path, task, file):
  lines(
    tmp_path,
    file,
    multiple_choice('B'),
    multiple_choice('3', '123', 'abc'),
    multiple_choice('E', 'ABCDE', 'lmnop'),
  )
  result = texts(task)
  assert [(choice, right) for _, choice, right in result] == [
    (f' {text}', text in 'xcp') for text in 'wxyzabclmnop'
  ]
  assert {context for context, _, _ in result} == {'Question: Why?\nAnswer:'}
  index = [tuple(example['idx']) for example in examples(task)]
  assert index[3:8] == [(0, 3), (1, 0), (1, 1), (1, 2), (2, 0)]


def test_openbookqa_completes_the_stem(tmp_path):
  lines(tmp_path, 'openbookqa/Data/Main/dev.jsonl', multiple_choice('A'))
  assert texts('openbookqa')[0] == ('Why?', ' w', True)


def test_piqa_has_its_labels_in_a_file_of_their_own(tmp_path):
  record = {'goal': 'Open it', 'sol1': 'Pull. ', 'sol2': 'Push.'}
  lines(tmp_path, 'piqa/valid.jsonl', record, record)
  official.write_lines(tmp_path / 'piqa/valid-labels.lst', ['1', '0'])
  result = texts('piqa')
  assert result[:2] == [
    ('Question: Open it\nAnswer:', ' Pull.', False),
    ('Question: Open it\nAnswer:', ' Push.', True),
  ]
  assert [right for _, _, right in result[2:]] == [True, False]


def test_siqa_counts_its_labels_from_one(tmp_path):
  record = {
    'context': 'Ann left.',
    'question': 'Why?',
    'answerA': 'a',
    'answerB': 'b',
    'answerC': 'c',
  }
  lines(tmp_path, 'siqa/dev.jsonl', record)
  official.write_lines(tmp_path / 'siqa/dev-labels.lst', ['3'])
  assert texts('siqa')[2] == (
    'Ann left.\nQuestion: Why?\nAnswer:',
    ' c',
    True,
  )


@pytest.mark.parametrize('where', ['record', 'label file', 'both'])
def test_winogrande_scores_what_follows_the_blank(tmp_path, where):
  record = {'sentence': 'So _ won.', 'option1': 'Ann', 'option2': 'Bob'}
  if where != 'label file':
    record['answer'] = '2'
  lines(tmp_path, 'winogrande/dev.jsonl', record)
  if where != 'record':
    official.write_lines(tmp_path / 'winogrande/dev-labels.lst', ['2'])
  assert texts('winogrande') == [
    ('So Ann', ' won.', False),
    ('So Bob', ' won.', True),
  ]


@pytest.mark.parametrize('plain', [True, False])
def test_lambada_asks_for_the_last_word(tmp_path, plain):
  passages = ['"Yes," he said, "my friend"', 'a b\n\nc d']
  if plain:
    passages = passages[:1]
    official.write_lines(
      tmp_path / 'lambada/lambada_test_plain_text.txt', passages
    )
  else:
    lines(
      tmp_path,
      'lambada/lambada_test.jsonl',
      *({'text': passage} for passage in passages),
    )
  result = texts('lambada')
  assert result[0] == ('"Yes," he said, "my', ' friend"', True)
  assert [c + t for c, t, _ in result] == passages
  assert texts('lambada', split='test') == result


@pytest.mark.parametrize('task', official.SETS)
def test_a_choice_ends_without_an_end_of_sequence(tmp_path, task):
  official.write(tmp_path, 4)
  dataset = seqio.get_mixture_or_task(task).get_dataset(
    LENGTHS, split='validation', shuffle=False
  )
  for example in dataset.as_numpy_iterator():
    assert 1 not in example['targets'] and 1 not in example['inputs']
    choice = example['targets_pretokenized'].decode().strip()
    assert example['characters'] == len(choice)
    assert not example['truncated']


@pytest.mark.parametrize('task', smoke.first(official.SETS, 2))
def test_the_order_is_that_of_the_file(tmp_path, task):
  official.write(tmp_path, 30)
  first, second = texts(task), texts(task)
  assert first == second
  assert len({example['idx'][0] for example in examples(task)}) == 30


def test_training_takes_the_right_choice_alone(tmp_path):
  records = [multiple_choice(answer) for answer in 'ACBD']
  lines(tmp_path, 'openbookqa/train.jsonl', *records)
  assert texts('openbookqa', split='train') == [
    ('Why?', f' {text}', True) for text in 'wyxz'
  ]


def test_what_is_too_long_loses_its_beginning(tmp_path):
  lines(tmp_path, 'lambada/lambada_test.jsonl', {'text': '0123456789 last'})
  (example,) = examples('lambada', lengths={'inputs': 9, 'targets': 9})
  assert (example['inputs'], example['targets']) == ('6789', ' last')
  assert example['truncated']
  (example,) = examples('lambada', lengths={'inputs': 3, 'targets': 3})
  assert (example['inputs'], example['targets']) == ('', 'ast')
  (example,) = examples('lambada', lengths={'inputs': 15, 'targets': 8})
  assert not example['truncated']


def test_choices_are_ranked_by_character_by_token_and_raw():
  def target(question, choice, right, tokens, characters):
    return choice_scores.Target(
      idx=(question, choice),
      is_correct=right,
      weight=1.0,
      tokens=tokens,
      characters=characters,
      truncated=choice == 0,
      choices=2 + question,
    )

  targets = [
    # The raw sum likes the short choice; tokens and characters disagree.
    target(0, 0, False, 1, 2),
    target(0, 1, True, 2, 12),
    target(1, 0, True, 4, 8),
    target(1, 1, False, 8, 8),
    target(1, 2, False, 8, 8),
  ]
  scores = np.array([-2.0, -6.0, -4.0, -6.0, -9.0])
  for given in (scores, (scores, {'is_argmax': scores > 0})):
    assert downstream.questions.choice_accuracy(targets, given) == {
      'accuracy': 1.0,
      'accuracy_per_character': 1.0,
      'accuracy_raw': 0.5,
      'accuracy_per_token': 0.0,
      'chance': pytest.approx((1 / 2 + 1 / 3) / 2),
      'truncated': 0.4,
      'questions': 2,
    }


def test_lambada_is_measured_by_word():
  targets = [
    choice_scores.Target((i, 0), True, 1.0, 2, 5, False, 1) for i in range(2)
  ]
  scores = (np.log([0.5, 0.125]), {'is_argmax': np.array([True, False])})
  assert downstream.lambada.last_word(targets, scores) == {
    'accuracy': 0.5,
    'perplexity': pytest.approx(4.0),
    'loss': pytest.approx(np.log(4.0)),
    'truncated': 0.0,
    'passages': 2,
  }
  with pytest.raises(UserError, match='score_argmax = True'):
    downstream.lambada.last_word(targets, scores[0])


_PIQA = {'goal': 'g', 'sol1': 'a', 'sol2': 'b'}
_SIQA = {'context': 'c', 'question': 'q'} | {f'answer{x}': 'a' for x in 'ABC'}


@pytest.mark.parametrize(
  'task, files, problem',
  [
    (
      'arc_easy',
      {'arc/ARC-Easy-Dev.jsonl': [multiple_choice('A'), '{"id":']},
      r'ARC-Easy-Dev.jsonl, line 2: not JSON \(.*column \d+\)',
    ),
    (
      'arc_easy',
      {'arc/ARC-Easy-Dev.jsonl': ['[1]']},
      'line 1: expected a JSON object',
    ),
    (
      'arc_easy',
      {'arc/ARC-Easy-Dev.jsonl': [multiple_choice('F')]},
      r"line 1: answer 'F' is none of the labels A, B, C, D",
    ),
    (
      'commonsenseqa',
      {'commonsenseqa/dev_rand_split.jsonl': [{'question': {'choices': []}}]},
      r"line 1: expected 'answerKey', which is not there",
    ),
    (
      'hellaswag',
      {
        'hellaswag/hellaswag_val.jsonl': [
          {'activity_label': 'a', 'ctx': 'c', 'endings': ['e'], 'label': 1}
        ]
      },
      r'line 1: label 1: expected one of 0',
    ),
    (
      'hellaswag',
      {
        'hellaswag/hellaswag_val.jsonl': [
          {'activity_label': 'a', 'ctx': 'c', 'endings': 5, 'label': 1}
        ]
      },
      r"line 1: 'int' object is not iterable",
    ),
    (
      'winogrande',
      {'winogrande/dev.jsonl': [{'sentence': 5, 'answer': '1'}]},
      r"line 1: 'int' object has no attribute 'partition'",
    ),
    (
      'hellaswag',
      {'hellaswag/hellaswag_validation.jsonl': ['{}']},
      r'no file hellaswag_val.jsonl in it; nearest: hellaswag_validation.jsonl',
    ),
    (
      'piqa',
      {'piqa/valid.jsonl': [_PIQA]},
      r'line 1: no label, and no file valid-labels.lst or dev-labels.lst',
    ),
    (
      'piqa',
      {'piqa/valid.jsonl': [_PIQA], 'piqa/valid-labels.lst': ['0', '1']},
      r'valid-labels.lst has 2 labels for the 1 lines of .*valid.jsonl',
    ),
    (
      'siqa',
      {'siqa/dev.jsonl': [_SIQA] * 2, 'siqa/dev-labels.lst': ['1', '0']},
      r"dev.jsonl, line 2 and dev-labels.lst, line 2: label '0': expected one "
      'of 1, 2, 3',
    ),
    (
      'winogrande',
      {
        'winogrande/dev.jsonl': [
          {'sentence': '_', 'option1': 'a', 'option2': 'b', 'answer': '1'}
        ],
        'winogrande/dev-labels.lst': ['2'],
      },
      r"label '2' but 'answer' '1'",
    ),
    (
      'winogrande',
      {
        'winogrande/dev.jsonl': [
          {'sentence': 'no', 'option1': 'a', 'option2': 'b', 'answer': '1'}
        ]
      },
      r"'sentence' has no blank",
    ),
    ('lambada', {'lambada/lambada_test.jsonl': ['word']}, 'more than one word'),
    ('lambada', {'lambada/lambada_test.jsonl': ['']}, "'validation' is empty"),
    ('siqa', {}, 'siqa: no folder of this name in DATA_DIR'),
    (
      'piqa',
      {'a/dev.jsonl': ['{}']},
      r'no piqa:1.0.0 .*tfds build piqa.*put the official files in '
      '<DATA_DIR>/piqa',
    ),
  ],
)
def test_what_is_wrong_is_one_line(tmp_path, task, files, problem):
  for name, records in files.items():
    official.write_lines(
      tmp_path / name,
      [r if isinstance(r, str) else json.dumps(r) for r in records],
    )
  gin.bind_parameter('data_dir.root.path', str(tmp_path))
  with pytest.raises(UserError, match=problem) as error:
    examples(task)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'task', ['commonsenseqa', 'hellaswag', 'piqa', 'winogrande']
)
def test_test_splits_without_labels(task):
  with pytest.raises(UserError, match="has no labels; use 'validation'"):
    examples(task, split='test')


def test_data_dir_that_is_not_there(tmp_path, monkeypatch):
  gin.bind_parameter('data_dir.root.path', str(tmp_path / 'nowhere'))
  with pytest.raises(UserError, match='DATA_DIR: there is no folder .*nowhere'):
    examples('piqa')
  # The environment is asked where gin says nothing.
  gin.bind_parameter('data_dir.root.path', None)
  official.write(tmp_path, 2)
  monkeypatch.setenv('DATA_DIR', str(tmp_path))
  assert len(examples('piqa')) == 4


_FOUR = {f'choice_{letter}': letter.lower() for letter in 'ABCD'}


@pytest.mark.parametrize(
  'task, builder, example, choices, label',
  [
    (
      'hellaswag',
      'hellaswag',
      {
        'context': 'c',
        'endings': ['[title] a', 'b'],
        'activity_label': 'l',
        'label': 1,
        'split_type': '',
        'source_id': '',
      },
      [' a', ' b'],
      1,
    ),
    (
      'arc_challenge',
      'ai2_arc/ARC-Challenge',
      {
        'id': '',
        'question': 'Why?',
        'choices': {'text': ['x', 'y', 'z'], 'label': [0, 1, 2]},
        'answerKey': 2,
      },
      [' x', ' y', ' z'],
      2,
    ),
    (
      'piqa',
      'piqa',
      {'id': '', 'goal': 'g', 'sol1': 'a', 'sol2': 'b', 'label': 1},
      [' a', ' b'],
      1,
    ),
    (
      'openbookqa',
      'openbookqa',
      {
        'question': {'stem': 's', **_FOUR},
        'fact1': '',
        'humanScore': 1.0,
        'clarity': 1.0,
        'turkIdAnonymized': '',
        'answerKey': 3,
      },
      [' a', ' b', ' c', ' d'],
      3,
    ),
    (
      'winogrande',
      'winogrande',
      {'sentence': 'a _ b', 'option1': 'x', 'option2': 'y', 'label': 1},
      [' b', ' b'],
      1,
    ),
    ('lambada', 'lambada', {'passage': 'a b c\n'}, [' c'], 0),
  ],
)
def test_tensorflow_datasets_give_the_same_questions(
  monkeypatch, task, builder, example, choices, label
):
  """What the real builders' features hold becomes a question."""
  features = tfds.builder(builder).info.features
  dataset = tf.data.Dataset.from_generator(
    lambda: iter([example]), output_signature=features.get_tensor_spec()
  )
  monkeypatch.setattr(
    tfds_source.TfdsSource, 'get_dataset', lambda *_, **__: dataset
  )
  (question,) = seqio.get_mixture_or_task(task).source.questions('validation')
  assert list(question.choices) == choices
  assert question.label == label
