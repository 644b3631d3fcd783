"""The rules of the one reader: encodings, line ends, compression, JSON."""

import bz2
import codecs
import gzip
import json
import logging
import lzma
import re

import hypothesis
import hypothesis.strategies as st
import pytest

from selective_t5x.errors import UserError
from selective_t5x.tasks import text_reader

TEXT = 'first\n\nzwei ü \U0001f600\n'


def write(folder, data, name='a.txt'):
  path = folder / name
  path.write_bytes(data.encode() if isinstance(data, str) else data)
  return path


def read(path):
  return [
    (line.number, line.text, line.end) for line in text_reader.lines(path)
  ]


def problem(path, reading=read):
  """Returns the one line that reading a file ends in."""
  with pytest.raises(UserError) as error:
    list(reading(path))
  message = str(error.value)
  assert '\n' not in message and str(path) in message
  return message.replace(str(path), path.name)


@pytest.mark.parametrize(
  'encoding, mark',
  [
    ('utf-8', b''),
    ('utf-8', codecs.BOM_UTF8),
    ('utf-16-le', codecs.BOM_UTF16_LE),
    ('utf-16-be', codecs.BOM_UTF16_BE),
    ('utf-32-le', codecs.BOM_UTF32_LE),
    ('utf-32-be', codecs.BOM_UTF32_BE),
  ],
)
@pytest.mark.parametrize('pack', [bytes, gzip.compress])
def test_encodings(tmp_path, encoding, mark, pack):
  path = write(tmp_path, pack(mark + TEXT.encode(encoding)))
  assert read(path) == [
    (1, 'first', '\n'),
    (2, '', '\n'),
    (3, 'zwei ü \U0001f600', '\n'),
  ]
  assert text_reader.whole(path) == TEXT


@pytest.mark.parametrize('encoding', ['utf-16-le', 'utf-16-be', 'utf-32-be'])
def test_two_byte_encodings_without_a_mark_are_refused(tmp_path, encoding):
  path = write(tmp_path, TEXT.encode(encoding))
  assert 'a.txt: a zero byte at its start' in problem(path)


def test_only_the_mark_at_the_start_is_none_of_the_text(tmp_path):
  path = write(tmp_path, '\ufeff\ufeffa\n\ufeffb')
  assert [text for _, text, _ in read(path)] == ['\ufeffa', '\ufeffb']
  assert read(write(tmp_path, '')) == read(write(tmp_path, '\ufeff')) == []


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
  st.lists(
    st.tuples(
      st.text(st.sampled_from('ab ü\u2028\u2029\x85\x0b\x0c\x1c\x1e')),
      st.sampled_from(['\n', '\r\n', '\r']),
    )
  ),
  st.sampled_from([bytes, gzip.compress]),
)
def test_what_ends_a_line(tmp_path_factory, pairs, pack):
  """Three do, in any mixture; what Python's splitlines adds does not."""
  text = ''.join(line + end for line, end in pairs)
  # \r before \n in the next pair would be one end.
  hypothesis.assume(
    not any(
      end == '\r' and later == ('', '\n')
      for (_, end), later in zip(pairs, pairs[1:], strict=False)
    )
  )
  path = write(tmp_path_factory.getbasetemp(), pack(text.encode()))
  assert read(path) == [(i + 1, *pair) for i, pair in enumerate(pairs)]
  assert text_reader.whole(path) == text


@pytest.mark.parametrize('shift', range(3))
def test_a_line_end_between_two_chunks_is_one(tmp_path, shift):
  count = io_chunk = 8192
  line = 'x' * (count - 1 - shift)
  path = write(tmp_path, f'{line}\r\n' * 5)
  assert len(line) < io_chunk
  assert [len(text) for _, text, _ in read(path)] == [len(line)] * 5


@pytest.mark.parametrize('name', ['a', 'a.txt', 'A.TXT.GZ', 'a.gz', 'a.bz2'])
@pytest.mark.parametrize(
  'pack', [bytes, gzip.compress, bz2.compress, lzma.compress]
)
def test_compression_is_told_by_the_content(tmp_path, name, pack):
  path = write(tmp_path, pack(TEXT.encode()), name)
  assert text_reader.whole(path) == TEXT


def test_parts_that_were_packed_apart_are_one_file(tmp_path):
  parts = [codecs.BOM_UTF8[:1], codecs.BOM_UTF8[1:], 'ü'.encode()[:1], b'\xbc']
  path = write(tmp_path, b''.join(map(gzip.compress, parts)))
  assert read(path) == [(1, 'ü', '')]


@pytest.mark.parametrize(
  'magic, kind',
  [
    (b'\x28\xb5\x2f\xfd\x04', 'zstd'),
    (b'PK\x03\x04\x14', 'zip'),
    (b"7z\xbc\xaf'\x1c", '7z'),
    (b'\x04"M\x18', 'LZ4'),
  ],
)
def test_what_is_not_unpacked_is_named(tmp_path, magic, kind):
  message = problem(write(tmp_path, magic + bytes(20), 'a.txt.gz'))
  assert f'a.txt.gz: compressed as {kind}, which is not read' in message


@pytest.mark.parametrize('lines', [2, 5000])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
@pytest.mark.parametrize('pack', [bytes, gzip.compress])
def test_a_byte_that_is_no_text_is_named(tmp_path, lines, end, pack):
  """However far into the file; the lines before it are whole."""
  before = f'für\u2028 alle{end}' * lines
  data = before.encode() + b'\xc3\xbc\xff ok\n' + b'ok\n' * 9000
  message = problem(write(tmp_path, pack(data)))
  assert message == (
    f'a.txt, line {lines + 1}: byte 3 of the line, 0xff, is not utf-8'
  )


@pytest.mark.parametrize(
  'data, where',
  [
    (b'caf\xe9\n', 'line 1: byte 4 of the line, 0xe9'),  # Latin-1
    (b'a\n\xed\xa0\xbd\n', 'line 2: byte 1 of the line, 0xed'),  # a surrogate
    (b'a\n\xc3', 'line 2: byte 1 of the line, 0xc3'),  # cut off
    (codecs.BOM_UTF16_LE + b'a\0\n\0b', 'line 2: byte 1 of the line, 0x62'),
    (codecs.BOM_UTF16_LE + b'a\0\x3d\xd8b\0', 'line 1: byte 3 of the line'),
  ],
)
def test_bytes_that_are_no_text(tmp_path, data, where):
  assert f'a.txt, {where}' in problem(write(tmp_path, data))


@pytest.mark.parametrize('pack', [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize('share', [0.1, 0.6, 0.99])
def test_a_damaged_file_is_named(tmp_path, pack, share):
  lines = [f'{i} {i * 7919 % 104729:x}\n' for i in range(30000)]
  data = pack(''.join(lines).encode())
  message = problem(write(tmp_path, data[: int(len(data) * share)]))
  assert re.match(r'a.txt, line \d+: |a.txt: cannot be read: ', message)


def test_what_cannot_be_opened(tmp_path):
  assert 'nowhere: cannot be read: No such file' in problem(
    tmp_path / 'nowhere'
  )
  folder = tmp_path / 'folder'
  folder.mkdir()
  assert 'folder: cannot be read: Is a directory' in problem(folder)


def objects(path):
  return [(line.number, x) for line, x in text_reader.objects(path)]


def test_json_lines(tmp_path):
  values = [{'a': 'x\u2028y\x85z'}, {'b': [1, None], 'ü': {'d': '\r\n'}}]
  first, second = (json.dumps(x, ensure_ascii=False) for x in values)
  path = write(tmp_path, f'\ufeff{first}\r\n \n\t\n  {second}')
  assert objects(path) == [(1, values[0]), (4, values[1])]


@pytest.mark.parametrize(
  'line, reason',
  [
    ('{"a": "cut', 'not JSON (Unterminated string starting at, column 7)'),
    ('  [1]', 'expected a JSON object'),
    ('null', 'expected a JSON object'),
    ('{"a": ' + '[' * 100000, 'not JSON (maximum recursion depth'),
    ('{"a": ' + '9' * 5000 + '}', 'not JSON (Exceeds the limit'),
    ('\ufeff{"a": 1}', 'not JSON (Unexpected UTF-8 BOM'),
    ('{"a": 1}\x85{"a": 2}', 'not JSON (Extra data, column 9)'),
  ],
)
def test_what_is_no_json_object(tmp_path, line, reason):
  path = write(tmp_path, '{"a": "\u2028"}\n\n' + line + '\n{"a": 1}\n')
  assert problem(path, objects).startswith(f'a.txt, line 3: {reason}')


def test_half_of_a_surrogate_pair_is_told_once(tmp_path, caplog):
  path = write(
    tmp_path,
    '{"a": "\\ud83d\\ude00 \\\\ud83d"}\n'  # a whole one, and a backslash
    '{"a": ["\\ud83d", {"\\uDE00": "\\ud83dx\\ude00"}]}\n'
    '{"a": "\\ude00\\ud83d"}\n',
  )
  with caplog.at_level(logging.WARNING):
    assert objects(path) == [
      (1, {'a': '\U0001f600 \\ud83d'}),
      (2, {'a': ['?', {'?': '?x?'}]}),
      (3, {'a': '??'}),
    ]
  (message,) = (record.getMessage() for record in caplog.records)
  assert message.startswith(f'{path}, line 2: half of a surrogate pair')


def test_what_is_deep_and_half_a_pair_is_one_line(tmp_path):
  deep = '{"a": ' + '[' * 480 + '"\\ud83d"' + ']' * 480 + '}'
  try:
    objects(write(tmp_path, deep))
  except UserError as error:  # or it is read: that depends on the stack
    assert 'line 1: not JSON' in str(error)


def test_text_under_a_key(tmp_path):
  path = write(tmp_path, '\n{"text": "a", "n": 1}\n')
  ((line, record),) = text_reader.objects(path)
  assert text_reader.text_under('text', record, line) == 'a'
  for key, near in (('n', ''), ('txt', '; nearest: text'), ('zzz', '')):
    with pytest.raises(UserError) as error:
      text_reader.text_under(key, record, line)
    assert str(error.value) == f'{path}, line 2: no text under {key!r}{near}'


_HEADS = st.sampled_from(
  [
    b'',
    *(codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF32_BE),
    *(b'\x1f\x8b', b'BZh9', b'\xfd7zXZ\x00', b'PK\x03\x04'),
    *(gzip.compress(b'a\r'), bz2.compress(b'\xff'), lzma.compress(b'{}')),
    *(b'{"a": "', b'{"a": "\\ud83d"}\r', b'\xc3', b'\0'),
  ]
)


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(_HEADS, st.binary(max_size=40))
def test_any_bytes_are_text_or_one_line(tmp_path_factory, head, rest):
  path = write(tmp_path_factory.getbasetemp(), head + rest, 'any')
  for reading in (read, objects):
    try:
      values = reading(path)
    except UserError as error:
      assert str(error).startswith(str(path))
      assert '\n' not in str(error)
    else:  # what is read is whole characters, which a vocabulary can take
      json.dumps(values, ensure_ascii=False).encode()
