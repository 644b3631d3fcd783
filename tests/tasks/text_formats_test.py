"""Every task reads a file alike, whatever its encoding, line ends or packing.

`text_reader_test` has the rules; here is that each caller keeps them.
"""

import bz2
import gzip
import importlib
import json
import lzma
import pathlib
import sys

import gin
import pytest
import seqio

from selective_t5x.errors import UserError
from selective_t5x.tasks import json_lines, vocabularies
from tests.tasks import pipelines

BOM = b'\xef\xbb\xbf'
FEATURES = {
  name: seqio.Feature(seqio.ByteVocabulary()) for name in ('inputs', 'targets')
}

# Each writes the same lines in another form.
FORMS = {
  'plain': lambda data: data,
  'byte order mark': lambda data: BOM + data,
  'Windows': lambda data: BOM + data.replace(b'\n', b'\r\n'),
  'old Mac': lambda data: data.replace(b'\n', b'\r'),
  'no last line end': lambda data: data.removesuffix(b'\n'),
  'UTF-16': lambda data: data.decode().encode('utf-16'),
  'gzip': gzip.compress,
  'bzip2': bz2.compress,
  'xz': lzma.compress,
  'gzip of a byte order mark': lambda data: gzip.compress(BOM + data),
}


@pytest.fixture(autouse=True)
def folder(tmp_path):
  gin.parse_config(f"""
    vocabularies.Choice.kind = 'bytes'
    data_dir.root.path = '{tmp_path}'
  """)
  return tmp_path


@pytest.fixture(params=FORMS)
def write(request, folder):
  """Writes lines, in a form, to a file whose name tells nothing of it."""

  def write(name, *lines):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = ''.join(f'{line}\n' for line in lines).encode()
    path.write_bytes(FORMS[request.param](data))
    return path

  return write


def records(**columns):
  """Returns JSON lines that have raw line separators in their texts."""
  return [
    json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False)
    for row in zip(*columns.values(), strict=True)
  ]


TEXTS = ['one\u2028two', 'next\u0085line', 'three\u2029', 'ü \U0001f600']


@pytest.mark.parametrize('document', ['line', 'paragraph', 'file'])
def test_text_files(write, document):
  path = write('A.TXT', 'The first line.', 'Über\u2028uns.')
  gin.parse_config(f"""
    text_files.Files.train = '{path}'
    text_files.Files.document = '{document}'
    text_files.Files.held_out = 1e-9
  """)
  documents = pipelines.documents('text_files_lm')
  if document == 'file':  # has its line ends as they are
    documents = [''.join(f'{x}\n' for x in documents[0].split())]
    assert documents == ['The\nfirst\nline.\nÜber\nuns.\n']
  else:
    lines = ['The first line.', 'Über\u2028uns.']
    assert documents == (lines if document == 'line' else ['\n'.join(lines)])


def test_c4(write, folder):
  write('c4/c4-train.00000-of-00001.json', *records(text=TEXTS))
  gin.bind_parameter('c4_json.Files.held_out', 1e-9)
  assert pipelines.documents('c4_json_lm') == TEXTS


def test_wikitext(write):
  lines = [' = Lobster = ', ' Red \u2028 . ']
  write('wikitext-2/wiki.train.tokens', *lines)
  (article,) = pipelines.documents('wikitext_2_lm')
  assert article.replace('\r\n', '\n').replace('\r', '\n').rstrip('\n') == (
    '\n'.join(lines)
  )


def test_lm1b(write):
  name = 'training-monolingual.tokenized.shuffled/news.en-00001-of-00100'
  lines = ['A sentence .', 'Über\u0085 one .']
  write(f'lm1b/{name}', *lines)
  assert pipelines.documents('lm1b_lm') == lines


def test_json_lines_for_inference(write):
  path = write('a.jsonl', *records(inputs=TEXTS, targets=TEXTS))
  columns = json_lines.read(
    str(path), {'inputs': 'inputs', 'targets': 'targets'}
  )
  assert columns == {'inputs': TEXTS, 'targets': TEXTS}


def questions(task):
  source = seqio.TaskRegistry.get(task).source
  return source.questions('validation')


@pytest.mark.parametrize('name', ['test.jsonl', 'test_plain_text.txt'])
def test_lambada(write, name):
  passages = ['He broke\u2028the cup', 'She saw the cup']
  lines = records(text=passages) if name.endswith('jsonl') else passages
  write(f'lambada/lambada_{name}', *lines)
  result = [q.contexts[0] + q.choices[0] for q in questions('lambada')]
  assert result == passages


def test_records_and_labels(write):
  lines = records(goal=TEXTS, sol1=['a'] * 4, sol2=['b'] * 4)
  write('piqa/valid.jsonl', *lines)
  write('piqa/valid-labels.lst', *'1001')
  result = questions('piqa')
  assert [q.label for q in result] == [1, 0, 0, 1]
  assert [q.contexts[0] for q in result] == [
    f'Question: {text}\nAnswer:' for text in TEXTS
  ]


def test_vocabularies_are_trained_on_the_text_alone(folder):
  plain, packed = folder / 'plain.txt', folder / 'packed.TXT.GZ'
  plain.write_text('The first line.\nThe second.\n')
  packed.write_bytes(gzip.compress(BOM + plain.read_bytes()))
  texts = []
  for path in (plain, packed):
    gin.clear_config()
    gin.parse_config(f"""
      text_files.Files.train = '{path}'
      text_files.Files.held_out = 1e-9
    """)
    texts.append(list(vocabularies._training_documents('text_files_lm')))
  assert texts[0] == texts[1] == ['The first line.\nThe second.']


# Written raw: half of a pair is what JSON can spell and UTF-8 cannot.
HALF = '{"%s": "half \\ud83d pair and a whole \\ud83d\\ude00", "b c": "b c"}\n'
READ = 'half ? pair and a whole \U0001f600'


def test_half_of_a_surrogate_pair_for_inference(folder):
  path = folder / 'a.jsonl'
  path.write_text(HALF % 'inputs')
  name = json_lines.task_from_file(
    str(path), FEATURES, 'inputs', targets_key='b c'
  )
  dataset = seqio.get_mixture_or_task(name).get_dataset(None, 'infer')
  (example,) = dataset.as_numpy_iterator()
  assert example['inputs_pretokenized'].decode() == READ


def test_half_of_a_surrogate_pair_in_a_benchmark(folder):
  (folder / 'lambada').mkdir()
  (folder / 'lambada/lambada_test.jsonl').write_text(HALF % 'text')
  task = seqio.get_mixture_or_task('lambada')
  (example,) = task.get_dataset(None, 'validation').as_numpy_iterator()
  text = example['inputs_pretokenized'] + example['targets_pretokenized']
  assert text.decode() == READ


def test_half_of_a_surrogate_pair_in_c4(folder):
  (folder / 'c4').mkdir()
  (folder / 'c4/c4-train.00000-of-00001.json').write_text(HALF % 'text')
  gin.bind_parameter('c4_json.Files.held_out', 1e-9)
  assert pipelines.documents('c4_json_lm') == [READ]


BAD = {
  'not JSON': ('{"text": "b"', 'not JSON'),
  'a list': ('["b"]', 'expected a JSON object'),
  'no text': ('{"txt": "b"}', "no text under 'text'; nearest: txt"),
  'a number': ('{"text": 5}', "no text under 'text'"),
}


@pytest.mark.parametrize('line, problem', BAD.values(), ids=BAD)
@pytest.mark.parametrize('task', ['c4', 'infer', 'lambada'])
def test_the_line_that_is_named_is_the_line(folder, task, line, problem):
  """What splits no line counts as none; an empty line counts."""
  good = json.dumps({'text': 'a\u2028b\u0085c d'}, ensure_ascii=False)
  lines = f'{good}\n\n{good}\n{line}\n'
  name = {
    'c4': 'c4/c4-train.00000-of-00001.json',
    'infer': 'a.jsonl',
    'lambada': 'lambada/lambada_test.jsonl',
  }[task]
  path = folder / name
  path.parent.mkdir(exist_ok=True)
  path.write_bytes(BOM + lines.encode())
  with pytest.raises(UserError, match=f'{path.name}, line 4: {problem}'):
    if task == 'c4':
      pipelines.documents('c4_json_lm')
    elif task == 'infer':
      json_lines.read(str(path), {'inputs': 'text'})
    else:
      questions('lambada')


@pytest.mark.parametrize(
  'lines, problem',
  [
    (['{"text": "a b"}', 'a b'], 'line 2: not JSON'),
    ([' {"text": "a b"}', '{"text": "c d"}'], None),
    (['a b', '{"text": "a b"}'], 'line 2: a JSON object .* plain text'),
  ],
)
def test_lambada_is_one_format_throughout(folder, lines, problem):
  (folder / 'lambada').mkdir()
  path = folder / 'lambada/lambada_test_plain_text.txt'
  path.write_text('\n'.join(lines))
  if problem is None:
    assert [q.choices[0] for q in questions('lambada')] == [' b', ' d']
    return
  with pytest.raises(UserError, match=problem):
    questions('lambada')


def test_labels_belong_to_the_line_of_their_number(folder):
  """As many labels as records, but not of the same lines."""
  (folder / 'piqa').mkdir()
  record = json.dumps({'goal': 'g', 'sol1': 'a', 'sol2': 'b'})
  (folder / 'piqa/valid.jsonl').write_text(f'{record}\n{record}\n\n{record}\n')
  labels = folder / 'piqa/valid-labels.lst'
  labels.write_text('0\n1\n\n1\n')
  assert [q.label for q in questions('piqa')] == [0, 1, 1]
  labels.write_text('0\n\n1\n1\n')
  with pytest.raises(
    UserError, match='valid.jsonl, line 2: no label on line 2'
  ):
    questions('piqa')


def test_a_task_of_ones_own_of_lines(write, folder, monkeypatch):
  """The template of docs/tasks."""
  write('train.tsv', '1 plus 1?\tzw\u2028ei', '2 plus 2?\tvier')
  write('validation.tsv', '1 plus 1?\tzwei')
  monkeypatch.chdir(folder)
  docs = pathlib.Path(__file__).parents[2] / 'docs/tasks'
  monkeypatch.syspath_prepend(str(docs))
  try:
    importlib.import_module('my_tasks')
    dataset = seqio.get_mixture_or_task('my_task').get_dataset(
      None, 'train', shuffle=False
    )
    assert [
      (e['inputs_pretokenized'].decode(), e['targets_pretokenized'].decode())
      for e in dataset.as_numpy_iterator()
    ] == [('1 plus 1?', 'zw\u2028ei'), ('2 plus 2?', 'vier')]
  finally:
    sys.modules.pop('my_tasks', None)
    seqio.TaskRegistry.remove('my_task')


def test_nothing_else_in_tasks_reads_text():
  """Each of these has rules of its own, for line ends or for encodings."""
  others = (
    '.read_text(',
    '.splitlines(',
    'TextLineDataset(',
    'TextLineDataSource(',
    'gzip.',
  )
  folder = pathlib.Path(json_lines.__file__).parent
  result = {
    path.name: [word for word in others if word in path.read_text()]
    for path in folder.glob('*.py')
    if path.name != 'text_reader.py'
  }
  assert {name: words for name, words in result.items() if words} == {}
