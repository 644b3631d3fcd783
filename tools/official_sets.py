"""Writes made-up benchmark sets in the official files' formats, for tests."""

import json
import random
import string

SETS = (
  'hellaswag',
  'arc_easy',
  'arc_challenge',
  'piqa',
  'openbookqa',
  'winogrande',
  'commonsenseqa',
  'siqa',
  'lambada',
)


def write(folder, count, seed=0):
  """Writes a DATA_DIR with `count` validation questions of every set."""
  rng = random.Random(seed)

  def words(most):
    return ' '.join(
      ''.join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 6)))
      for _ in range(rng.randint(1, most))
    )

  def labelled(number, labels):
    labels = labels[:number]
    return {
      'id': words(1),
      'question': {
        'stem': words(8) + '?',
        'choices': [{'text': words(4), 'label': a} for a in labels],
      },
      'answerKey': rng.choice(labels),
    }

  def arc():
    labels = rng.choice(['ABCDE', '12345'])
    return labelled(rng.choice([3, 4, 4, 4, 5]), labels)

  records = {
    'hellaswag/hellaswag_val.jsonl': lambda: {
      'activity_label': words(2),
      'ctx_a': words(8),
      'ctx_b': words(2),
      'ctx': words(8),
      'label': rng.randrange(4),
      'endings': [words(6) for _ in range(4)],
    },
    'arc/ARC-Easy-Dev.jsonl': arc,
    'arc/ARC-Challenge-Dev.jsonl': arc,
    'piqa/valid.jsonl': lambda: {
      'goal': words(6),
      'sol1': words(6),
      'sol2': words(6),
    },
    'openbookqa/OpenBookQA-V1-Sep2018/Data/Main/dev.jsonl': lambda: labelled(
      4, 'ABCD'
    ),
    'winogrande/dev.jsonl': lambda: {
      'qID': words(1),
      'sentence': f'{words(4)} _ {words(4)}.',
      'option1': words(1),
      'option2': words(1),
    },
    'commonsenseqa/dev_rand_split.jsonl': lambda: labelled(5, 'ABCDE'),
    'siqa/dev.jsonl': lambda: {
      'context': words(8),
      'question': words(4) + '?',
      'answerA': words(4),
      'answerB': words(4),
      'answerC': words(4),
    },
    'lambada/lambada_test.jsonl': lambda: {'text': words(20) + ' ' + words(1)},
  }
  for name, record in records.items():
    write_lines(folder / name, [json.dumps(record()) for _ in range(count)])
  for name, labels in (
    ('piqa/valid-labels.lst', '01'),
    ('winogrande/dev-labels.lst', '12'),
    ('siqa/dev-labels.lst', '123'),
  ):
    write_lines(folder / name, rng.choices(labels, k=count))
  return folder


def write_lines(path, lines):
  """Writes a file and the folders above it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(f'{line}\n' for line in lines))
