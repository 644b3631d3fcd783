"""Files as users have them: C4's shards, plain text, gensim's dump, damage."""

import gzip
import json

import gin
import pytest
import seqio

from selective_t5x.errors import UserError
from selective_t5x.tasks import sources, wikipedia_sample
from tests.tasks.pipelines import documents


def write_c4(path, texts):
  lines = [
    json.dumps({'text': t, 'timestamp': '2019-04-25', 'url': '/'})
    for t in texts
  ]
  data = ('\n'.join(lines) + '\n').encode()
  path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)


def bind_c4(folder):
  gin.parse_config(f"c4_json.Files.folder = '{folder}'")


def bind_text(pattern, **bindings):
  gin.clear_config()
  gin.parse_config(
    [f'text_files.Files.train = {pattern!r}']
    + [f'text_files.Files.{name} = {v!r}' for name, v in bindings.items()]
  )


def test_c4_reads_both_splits_in_the_order_of_the_shards(tmp_path):
  texts = ['first\nline', 'zweite ß', '\u65e5\u672c \U0001f600', ' \t"q"\\ ']
  write_c4(tmp_path / 'c4-train.00001-of-00002.json', texts[2:])
  write_c4(tmp_path / 'c4-train.00000-of-00002.json.gz', texts[:2])
  write_c4(tmp_path / 'c4-validation.00000-of-00001.json.gz', ['held', ' \n'])
  bind_c4(tmp_path)
  assert documents('c4_json_lm') == texts
  assert documents('c4_json_lm', 'validation') == ['held']  # blank: left out


def test_c4_with_validation_shards_alone_can_be_evaluated(tmp_path):
  write_c4(tmp_path / 'c4-validation.00000-of-00001.json.gz', ['held'])
  bind_c4(tmp_path)
  assert documents('c4_json_lm', 'validation') == ['held']
  with pytest.raises(UserError, match='c4-train.00000-of-01024.json.gz'):
    documents('c4_json_lm')


def test_c4_half_a_surrogate_pair_is_no_character(tmp_path):
  path = tmp_path / 'c4-train.00000-of-00001.json'
  path.write_text('{"text": "a\\ud800b"}\n')
  bind_c4(tmp_path)
  gin.bind_parameter('c4_json.Files.held_out', 1e-9)
  assert documents('c4_json_lm') == ['a?b']


@pytest.mark.parametrize(
  'line, reason',
  [
    ('{"text": "cut', 'line 3: not JSON .Unterminated string.* column 10'),
    ('["text"]', 'line 3: expected a JSON object'),
    ('{"txt": "a"}', "line 3: no text under 'text'; nearest: txt"),
    ('{"text": 5}', "line 3: no text under 'text'"),
    ('{}', "line 3: no text under 'text'"),
  ],
)
def test_c4_a_bad_line_is_named(tmp_path, line, reason):
  path = tmp_path / 'c4-train.00000-of-00001.json'
  good = json.dumps({'text': 'good'})
  path.write_text(f'{good}\n{good}\n{line}\n')
  bind_c4(tmp_path)
  with pytest.raises(UserError, match=f'{path.name}, {reason}'):
    documents('c4_json_lm')


def test_c4_a_shard_that_is_there_twice_is_not_read_twice(tmp_path):
  path = tmp_path / 'c4-train.00000-of-00001.json'
  write_c4(path, ['text'])
  write_c4(tmp_path / f'{path.name}.gz', ['text'])
  (tmp_path / f'{path.name}.lock').write_text('')  # no shard
  bind_c4(tmp_path)
  with pytest.raises(UserError, match='json and .*json.gz: expected one'):
    documents('c4_json_lm')


@pytest.mark.parametrize('keep', [0.5, 0.99])
def test_c4_a_file_that_is_cut_off_is_named(tmp_path, keep):
  path = tmp_path / 'c4-train.00000-of-00001.json.gz'
  write_c4(path, [f'text {i}' for i in range(2000)])
  data = path.read_bytes()
  path.write_bytes(data[: int(len(data) * keep)])
  bind_c4(tmp_path)
  with pytest.raises(UserError, match=rf'{path.name}, line \d+'):
    documents('c4_json_lm')
  # Mended, it is read: nothing of the half conversion was kept.
  path.write_bytes(data)
  gin.bind_parameter('c4_json.Files.held_out', 1e-9)
  assert len(documents('c4_json_lm')) == 2000


def test_c4_without_a_folder(tmp_path):
  with pytest.raises(UserError, match='bind c4_json.Files.folder'):
    documents('c4_json_lm')
  bind_c4(tmp_path / 'nowhere')
  with pytest.raises(UserError, match='no folder .*nowhere'):
    documents('c4_json_lm')
  bind_c4(tmp_path)
  with pytest.raises(UserError, match='no file in .* c4-train.00000'):
    documents('c4_json_lm')


@pytest.mark.parametrize(
  'document, expected',
  [
    ('line', ['one', ' two', 'three']),
    ('paragraph', ['one\n two', 'three']),
    ('file', ['one\r\n two\n \n\nthree\n\n']),
  ],
)
def test_text_documents(tmp_path, document, expected):
  (tmp_path / 'a.txt').write_bytes(b'one\r\n two\n \n\nthree\n\n')
  bind_text(f'{tmp_path}/a.txt', document=document, held_out=1e-9)
  assert documents('text_files_lm') == expected


def test_text_files_are_found_in_folders_and_unpacked(tmp_path):
  (tmp_path / 'deep' / 'er').mkdir(parents=True)
  (tmp_path / 'deep' / 'er' / 'b.txt.gz').write_bytes(gzip.compress(b'packed'))
  (tmp_path / 'a.txt').write_text('plain')
  (tmp_path / 'v.md').write_text('held')
  bind_text(
    [f'{tmp_path}/**/*.txt', f'{tmp_path}/**/*.gz', f'{tmp_path}/a*'],
    validation=f'{tmp_path}/v.md',
  )
  assert documents('text_files_lm') == ['plain', 'packed']
  assert documents('text_files_lm', 'validation') == ['held']


def test_the_held_out_share_is_of_documents_and_copies_stay_together(tmp_path):
  lines = [f'line {i}' for i in range(3000)]
  (tmp_path / 'a.txt').write_text('\n'.join(lines))
  (tmp_path / 'b.txt').write_text('\n'.join(reversed(lines)))
  bind_text(f'{tmp_path}/*.txt', document='line', held_out=0.2)
  train = documents('text_files_lm')
  validation = documents('text_files_lm', 'validation')
  assert sorted(train + validation) == sorted(lines * 2)
  assert not set(train) & set(validation)
  assert 0.15 < len(validation) / 6000 < 0.25


def test_a_changed_file_is_read_again(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('before')
  bind_text(str(path), held_out=1e-9)
  assert documents('text_files_lm') == ['before']
  path.write_text('afterwards')
  assert documents('text_files_lm') == ['afterwards']


def test_c4_is_found_in_the_data_folder(tmp_path):
  (tmp_path / 'c4').mkdir()
  write_c4(tmp_path / 'c4' / 'c4-train.00000-of-00001.json', ['text'])
  gin.parse_config(f"data_dir.root.path = '{tmp_path}'")
  gin.bind_parameter('c4_json.Files.held_out', 1e-9)
  assert documents('c4_json_lm') == ['text']


def test_a_test_split_is_there_once_it_is_named(tmp_path):
  (tmp_path / 'a.txt').write_text('one')
  (tmp_path / 'b.txt').write_text('two')
  bind_text(f'{tmp_path}/a.txt')
  task = seqio.TaskRegistry.get('text_files_lm')
  assert list(task.splits) == ['train', 'validation']
  with pytest.raises(UserError, match="no split 'test': there is train, valid"):
    documents('text_files_lm', 'test')
  bind_text(f'{tmp_path}/a.txt', test=f'{tmp_path}/b.txt')
  assert list(task.splits) == ['train', 'validation', 'test']
  assert documents('text_files_lm', 'test') == ['two']


def test_text_errors(tmp_path):
  with pytest.raises(UserError, match='bind text_files.Files.train'):
    documents('text_files_lm')
  bind_text(f'{tmp_path}/*.txt')
  with pytest.raises(UserError, match=r'Files.train: no file .*\*.txt'):
    documents('text_files_lm')
  (tmp_path / 'a.txt').write_text('only one')
  with pytest.raises(UserError, match="no document in split 'validation'"):
    documents('text_files_lm', 'validation')
  bind_text(f'{tmp_path}/a.txt', validation=f'{tmp_path}/none')
  with pytest.raises(UserError, match='Files.validation: no file'):
    documents('text_files_lm', 'validation')
  (tmp_path / 'b.txt').write_bytes(b'fine\nfine\n\xff\xfe\n')
  bind_text(f'{tmp_path}/b.txt')
  with pytest.raises(UserError, match='b.txt, line 3: .*utf-8'):
    documents('text_files_lm')


@pytest.mark.parametrize(
  'binding, reason',
  [
    ("text_files.Files.document = 'lines'", 'nearest: line'),
    ('text_files.Files.held_out = 2', 'from 0 to 1'),
    ('c4_json.Files.held_out = 0', 'from 0 to 1'),
    ('c4_json.Files.folder = 3', 'expected text'),
  ],
)
def test_bad_bindings(binding, reason):
  gin.parse_config(binding)
  task = binding.split('.')[0] + '_lm'
  with pytest.raises(UserError, match=reason):
    documents(task)


def test_the_wikipedia_sample_is_articles_without_markup():
  train = documents('wikipedia_sample_lm')
  validation = documents('wikipedia_sample_lm', 'validation')
  assert (len(train), len(validation)) == (98, 8)
  text = '\n'.join(train + validation)
  assert 3.0e6 < len(text) < 3.2e6
  assert 'anarchism' in text.lower() and 'Achilles' in text
  for markup in ('{{', '}}', '[[', ']]', '<ref', '\n\n\n'):
    assert text.count(markup) < 10, markup
  assert not any(t.lower().startswith('#redirect') for t in train)


def test_without_gensim_the_error_says_what_to_install(monkeypatch):
  monkeypatch.setattr(
    wikipedia_sample.importlib.util, 'find_spec', lambda name: None
  )
  with pytest.raises(UserError, match=r'pip install "selective_t5x\[wiki'):
    documents('wikipedia_sample_lm')


def test_a_damaged_dump_is_named(tmp_path, monkeypatch):
  spec = wikipedia_sample.importlib.util.find_spec('gensim')
  dump = sources.pathlib.Path(spec.origin).parent / 'test' / 'test_data'
  damaged = tmp_path / 'damaged.bz2'
  data = (dump / wikipedia_sample._DUMP).read_bytes()
  damaged.write_bytes(data[: len(data) // 3])
  with pytest.raises(UserError, match='damaged.bz2 is damaged'):
    list(wikipedia_sample._articles(damaged))
