"""text_files_lm: your own text, from files that match a pattern."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import gin

from selective_t5x.errors import UserError, did_you_mean
from selective_t5x.tasks import language_modeling, sources, text_reader


@gin.configurable(module='selective_t5x.tasks.text_files')
@dataclasses.dataclass(frozen=True)
class Files:
  """Files, and the unit that is a document; bound in gin.

      from selective_t5x.tasks import text_files
      text_files.Files.train = '~/novels/**/*.txt'

  Attributes:
    train: a glob pattern, or several; ** is any number of folders. Required.
      `text_reader` has the rules for encodings, line ends and compression.
    validation: the same; None: a share of the training documents is held out.
    test: the same; None: no such split.
    document: 'paragraph' (separated by blank lines), 'line' or 'file'. A
      document is cut into chunks of the context length, and no attention passes
      from one document to another: use 'file' for long contexts.
    held_out: that share, if validation is None.
  """

  train: str | Sequence[str] | None = None
  validation: str | Sequence[str] | None = None
  test: str | Sequence[str] | None = None
  document: str = 'paragraph'
  held_out: float = 0.05

  def __post_init__(self):
    """Refuses invalid values."""
    if self.document not in _DOCUMENTS:
      raise UserError(
        f'text_files.Files.document = {self.document!r}: expected one of '
        f'{", ".join(_DOCUMENTS)}{did_you_mean(str(self.document), _DOCUMENTS)}'
      )
    sources.check_share(self.held_out, 'text_files.Files.held_out')


def _paragraphs(path: pathlib.Path) -> Iterator[str]:
  paragraph = []
  for line in sources.line_texts(path):
    if line.strip():
      paragraph.append(line)
    elif paragraph:
      yield '\n'.join(paragraph)
      paragraph = []
  yield '\n'.join(paragraph)


def _file(path: pathlib.Path) -> Iterator[str]:
  yield text_reader.whole(path)


_DOCUMENTS = {
  'paragraph': _paragraphs,
  'line': sources.line_texts,
  'file': _file,
}


def _convert(files: Files, split: str) -> list[pathlib.Path]:
  if files.train is None:
    raise UserError(
      'text_files_lm: bind text_files.Files.train to a pattern of your files'
    )
  documents, entry = _DOCUMENTS[files.document], f'text_files/{files.document}'
  if split == 'test':
    return [
      sources.convert_file(path, documents, entry) / sources.KEPT
      for path in sources.matching_files(files.test, 'text_files.Files.test')
    ]
  return sources.convert_files(
    split,
    sources.matching_files(files.train, 'text_files.Files.train'),
    sources.matching_files(
      files.validation or [], 'text_files.Files.validation'
    ),
    files.held_out,
    documents,
    entry,
  )


class _Source(sources.DocumentSource):
  """The user's files; there is a test split if the bindings name one."""

  @property
  def splits(self) -> Sequence[str]:
    """The names of the splits, as the bindings have them now."""
    return (*sources.SPLITS, 'test') if Files().test else sources.SPLITS


SOURCE = _Source(lambda: Files(), _convert)
language_modeling.register('text_files_lm', SOURCE)
