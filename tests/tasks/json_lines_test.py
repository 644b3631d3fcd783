import json

import pytest
import seqio

from selective_t5x.errors import UserError
from selective_t5x.tasks import json_lines

FEATURES = {
  name: seqio.Feature(seqio.ByteVocabulary(), add_eos=True)
  for name in ('inputs', 'targets')
}


def _write(path, *records):
  path.write_text(''.join(f'{json.dumps(record)}\n' for record in records))
  return str(path)


def _examples(name):
  dataset = seqio.get_mixture_or_task(name).get_dataset(
    {'inputs': 8, 'targets': 8}, 'infer', shuffle=False
  )
  return list(dataset.as_numpy_iterator())


def test_lines_become_examples_in_order(tmp_path):
  path = _write(tmp_path / 'a.jsonl', {'q': 'für', 'id': 3}, {'q': 'b\nc'})
  name = json_lines.task_from_file(path, FEATURES, inputs_key='q')
  examples = _examples(name)
  texts = [example['inputs_pretokenized'].decode() for example in examples]
  assert texts == ['für', 'b\nc']
  vocabulary = FEATURES['inputs'].vocabulary
  assert [vocabulary.decode(e['inputs'].tolist()) for e in examples] == texts
  assert all(example['targets'].tolist() == [1] for example in examples)


def test_targets_are_read_where_they_are_named_and_long_text_is_cut(tmp_path):
  path = _write(tmp_path / 'a.jsonl', {'text': 'abcdefghijkl'})
  name = json_lines.task_from_file(
    path, {'targets': FEATURES['targets']}, targets_key='text'
  )
  (example,) = _examples(name)
  assert set(example) == {'targets', 'targets_pretokenized'}
  # The end stays: seven bytes and the end of the text.
  assert len(example['targets']) == 8 and example['targets'][-1] == 1


def test_names_follow_the_content(tmp_path):
  path = tmp_path / 'my questions.jsonl'
  _write(path, {'inputs': 'a'})
  first = json_lines.task_from_file(str(path), FEATURES)
  assert first == json_lines.task_from_file(str(path), FEATURES)
  assert first.startswith('my_questions_')
  _write(path, {'inputs': 'b'})
  assert first != json_lines.task_from_file(str(path), FEATURES)
  assert json_lines.task_from_file(str(path), FEATURES, task_id='q') == 'q'


@pytest.mark.parametrize(
  'text, message',
  [
    ('{"inputs": "a"}\n\n{"inputs"\n', 'a.jsonl, line 3: not JSON'),
    ('["a"]\n', 'a.jsonl, line 1: expected a JSON object'),
    (
      '{"input": "a"}\n',
      "a.jsonl, line 1: no text under 'inputs'; nearest: input",
    ),
    ('{"inputs": 4}\n', "a.jsonl, line 1: no text under 'inputs'"),
    ('\n', 'found none'),
  ],
)
def test_lines_that_are_no_examples_are_named(text, message, tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text(text)
  with pytest.raises(UserError, match=message):
    json_lines.task_from_file(str(path), FEATURES)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(UserError, match='none.jsonl: cannot be read'):
    json_lines.task_from_file(str(tmp_path / 'none.jsonl'), FEATURES)
