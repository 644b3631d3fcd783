r"""The one reader of text, of JSON lines and of label files.

Every task and every file for inference is read here, by these rules:

    encoding     UTF-8. A byte order mark at the start of the file is not part
                 of the text. UTF-16 and UTF-32 need one, and are an error
                 without. An undecodable byte is an error that names file, line
                 and byte.
    line ends    \n, \r\n and \r. Nothing else ends a line: not U+2028, U+2029
                 or U+0085, not a form feed.
    compression  gzip, bzip2 and xz are recognised by the first bytes of the
                 file, not by its name. zstd, LZ4, zip and 7z are an error.
    JSON lines   One object a line; blank lines are skipped. Half of a surrogate
                 pair ("\ud83d" alone), which is not a character, is read as
                 "?", with a warning.

Lines count from 1, and every line counts: the number in an error is the one
that an editor shows.
"""

import bz2
import codecs
import contextlib
import gzip
import io
import json
import lzma
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from absl import logging

from selective_t5x.errors import UserError, did_you_mean

# The first bytes of a file. UTF-32's little-endian mark starts like UTF-16's.
_MARKS = {
  codecs.BOM_UTF8: 'utf-8',
  codecs.BOM_UTF32_LE: 'utf-32-le',
  codecs.BOM_UTF32_BE: 'utf-32-be',
  codecs.BOM_UTF16_LE: 'utf-16-le',
  codecs.BOM_UTF16_BE: 'utf-16-be',
}
_UNPACKERS = {
  b'\x1f\x8b': gzip.open,
  b'BZh': bz2.open,
  b'\xfd7zXZ\x00': lzma.open,
}
_REFUSED = {
  b'\x28\xb5\x2f\xfd': 'zstd',
  b'\x04\x22\x4d\x18': 'LZ4',
  b'PK\x03\x04': 'zip',
  b'7z\xbc\xaf\x27\x1c': '7z',
}
_HEAD = 6  # bytes; the longest of those above

# Correctly decoded text has no surrogates, so these 256 can stand for
# undecodable bytes until their line number is known.
_FIRST_STAND_IN = 0xDC00
_BAD_BYTES = 'selective_t5x_bad_bytes'
codecs.register_error(
  _BAD_BYTES,
  lambda error: (
    ''.join(
      chr(_FIRST_STAND_IN + byte)
      for byte in error.object[error.start : error.end]
    ),
    error.end,
  ),
)

# In JSON source: the start of a possible half of a surrogate pair.
_SURROGATE = re.compile(r'\\u[dD][89a-fA-F]')


class Line(NamedTuple):
  r"""A line of a file.

  Attributes:
    path: the file.
    number: line number, from 1.
    text: the line without its end.
    end: '\n', '\r\n' or '\r', or '' after the last line.
  """

  path: pathlib.Path
  number: int
  text: str
  end: str

  @property
  def where(self) -> str:
    """File and line, for an error."""
    return f'{self.path}, line {self.number}'


def lines(path: str | pathlib.Path) -> Iterator[Line]:
  """Yields the lines of a text file; see the module for the rules.

  Raises:
    UserError: the file cannot be read, is truncated, or is not text; the error
      names file, line and byte.
  """
  path, number = pathlib.Path(path), 0
  with contextlib.ExitStack() as stack:
    try:
      file = stack.enter_context(open(path, 'rb'))
      text, encoding = _as_text(stack, file, path)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
      reason = getattr(error, 'strerror', None) or error
      raise UserError(f'{path}: cannot be read: {reason}') from error
    try:
      for number, line in enumerate(text, start=1):
        _check(line, path, number, encoding)
        content = line.rstrip('\r\n')
        yield Line(path, number, content, line[len(content) :])
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
      raise UserError(f'{path}, line {number + 1}: {error}') from error


def whole(path: str | pathlib.Path) -> str:
  """Returns the text of a file with its original line ends; see `lines`."""
  return ''.join(line.text + line.end for line in lines(path))


def objects(
  path: str | pathlib.Path,
) -> Iterator[tuple[Line, dict[str, Any]]]:
  """Yields the lines of a file of JSON lines, and the object of each.

  Raises:
    UserError: a line is not a JSON object; the error names file and line. See
      also `lines`.
  """
  warned = False
  for line in lines(path):
    if not line.text.strip():
      continue
    try:
      value = json.loads(line.text)
      characters = value
      if '\\u' in line.text and _SURROGATE.search(line.text):
        characters = _of_characters(value)
    except json.JSONDecodeError as error:
      raise UserError(
        f'{line.where}: not JSON ({error.msg}, column {error.colno})'
      ) from error
    except (ValueError, RecursionError) as error:  # too many digits or levels
      raise UserError(f'{line.where}: not JSON ({error})') from error
    if not isinstance(value, dict):
      raise UserError(f'{line.where}: expected a JSON object')
    if characters != value and not warned:
      warned = True
      logging.warning(
        '%s: half of a surrogate pair is no character, and is read as "?"; so '
        'are others that the file may have.',
        line.where,
      )
    yield line, characters


def text_under(key: str, record: Mapping[str, Any], line: Line) -> str:
  """Returns the text under a key of an object.

  Raises:
    UserError: the key is missing, or its value is not text.
  """
  text = record.get(key)
  if not isinstance(text, str):
    nearest = '' if key in record else did_you_mean(key, record)
    raise UserError(f'{line.where}: no text under {key!r}{nearest}')
  return text


def _as_text(
  stack: contextlib.ExitStack, file: BinaryIO, path: pathlib.Path
) -> tuple[io.TextIOWrapper, str]:
  """Returns the unpacked text of an open file, and its encoding."""
  head = _head(file)
  for magic, name in _REFUSED.items():
    if head.startswith(magic):
      raise UserError(
        f'{path}: compressed as {name}, which is not read: unpack it, or '
        'compress it with gzip, bzip2 or xz'
      )
  for magic, unpack in _UNPACKERS.items():
    if head.startswith(magic):
      file = stack.enter_context(unpack(file))
      head = _head(file)
      break
  mark = next((mark for mark in _MARKS if head.startswith(mark)), b'')
  if not mark and b'\0' in head[:4]:
    raise UserError(
      f'{path}: a zero byte at its start: expected UTF-8, or UTF-16 or UTF-32 '
      'with a byte order mark'
    )
  encoding = _MARKS.get(mark, 'utf-8')
  file.read(len(mark))
  text = io.TextIOWrapper(
    file, encoding=encoding, errors=_BAD_BYTES, newline=''
  )
  return stack.enter_context(text), encoding


def _head(file: BinaryIO) -> bytes:
  """Returns the first bytes of a file without consuming them."""
  if not file.seekable():  # a pipe
    return file.peek(_HEAD)[:_HEAD]
  head = file.read(_HEAD)
  file.seek(0)
  return head


def _check(line: str, path: pathlib.Path, number: int, encoding: str) -> None:
  """Raises UserError for a line with an undecodable byte."""
  try:
    line.encode()
  except UnicodeEncodeError as error:
    column = len(line[: error.start].encode(encoding)) + 1
    byte = ord(line[error.start]) - _FIRST_STAND_IN
    raise UserError(
      f'{path}, line {number}: byte {column} of the line, 0x{byte:02x}, is not '
      f'{encoding}'
    ) from None


def _of_characters(value: Any) -> Any:
  """Returns a JSON value with '?' for each half of a surrogate pair."""
  if isinstance(value, str):
    return value.encode(errors='replace').decode()
  if isinstance(value, list):
    return [_of_characters(item) for item in value]
  if isinstance(value, dict):
    return {
      _of_characters(key): _of_characters(item) for key, item in value.items()
    }
  return value
