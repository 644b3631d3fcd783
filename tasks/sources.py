"""Documents from files: converted once to TFRecords, then read by TensorFlow.

A resumed run rereads its examples up to its position, as fast as TensorFlow
can. So files that Python must parse (a Wikipedia dump, JSON lines) are
converted once, to files in the cache: a TFRecord holds one document as plain
UTF-8 with a checksum, and may contain any character.
"""

import dataclasses
import glob
import hashlib
import pathlib
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import seqio
import tensorflow as tf

from selective_t5x.errors import UserError, did_you_mean
from selective_t5x.tasks import cache, text_reader

SPLITS = ('train', 'validation')
KEPT = 'kept.tfrecord'
HELD_OUT = 'held_out.tfrecord'


class DocumentSource(seqio.DataSource):
  """A seqio source of {'text': document} from converted files.

  Attributes:
    settings: called without arguments when the source is used, never before;
      returns the bindings that determine the documents.
  """

  def __init__(
    self,
    settings: Callable[[], Hashable],
    convert: Callable[[Hashable, str], Sequence[pathlib.Path]],
    splits: Sequence[str] = SPLITS,
  ):
    """Stores the arguments; converts nothing.

    Args:
      settings: see the class.
      convert: (settings, split) -> TFRecord files, in a fixed order.
      splits: names of the splits.
    """
    self.settings = settings
    self._convert = convert
    super().__init__(splits=splits)

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """Is False: with fewer files than hosts, seqio splits up the documents."""
    return False

  def list_shards(self, split: str) -> list[str]:
    """Returns the split's TFRecord files that contain a document.

    Raises:
      UserError: there is no such split, or no document in it.
    """
    if split not in self.splits:
      raise UserError(
        f'no split {split!r}: there is {", ".join(self.splits)}'
        f'{did_you_mean(split, self.splits)}'
      )
    settings = self.settings()
    files = self._convert(settings, split)
    files = [str(file) for file in files if file.stat().st_size]
    if not files:
      raise UserError(f'no document in split {split!r} of {settings}')
    return files

  def data_identity(self, split: str) -> dict[str, pathlib.Path]:
    """Returns {the user's file: its conversion}, see the engine."""
    files = {}
    for shard in map(pathlib.Path, self.list_shards(split)):
      # The hash in an entry's name also depends on times and folders.
      entry = shard.parent
      name = re.sub('-?[0-9a-f]{16}$', '', entry.name) or entry.parent.name
      label = f'{name} ({shard.stem})'
      files[f'{label} {len(files)}' if label in files else label] = shard
    return files

  def get_dataset(
    self, split='train', shuffle=True, seed=None, shard_info=None
  ):
    """Returns the documents; `shuffle` shuffles files, the task its chunks."""
    files = seqio.FileDataSource(
      lambda file: tf.data.TFRecordDataset(file).map(lambda x: {'text': x}),
      {split: self.list_shards(split)},
    )
    return files.get_dataset(split, shuffle, seed, shard_info)


class TextLineSource(DocumentSource):
  """A seqio source of the lines of text files, each a string.

  It is like seqio.TextLineDataSource, but follows the rules of `text_reader`
  for encodings, line ends and compression, and skips blank lines.

      sources.TextLineSource({'train': 'train.tsv', 'validation': 'dev.tsv.gz'})
  """

  def __init__(self, files: Mapping[str, str | Sequence[str]]):
    """Stores the file names; reads nothing.

    Args:
      files: {split: a file or a glob pattern, or several}.
    """

    def convert(settings, split):
      del settings
      return [
        convert_file(path, line_texts, 'lines') / KEPT
        for path in matching_files(files[split], f'the split {split!r}')
      ]

    super().__init__(lambda: repr(files), convert, splits=tuple(files))

  def get_dataset(
    self, split='train', shuffle=True, seed=None, shard_info=None
  ):
    """Returns the lines; `shuffle` shuffles files, the task its lines."""
    documents = super().get_dataset(split, shuffle, seed, shard_info)
    return documents.map(lambda document: document['text'])


@dataclasses.dataclass(frozen=True)
class Document:
  """A document and a key; documents with the same key are in the same split."""

  text: str
  key: str


def write_documents(
  folder: pathlib.Path, documents: Iterable[Document], held_out: float
):
  """Writes <folder>/kept.tfrecord and <folder>/held_out.tfrecord.

  Args:
    folder: created here.
    documents: blank ones are skipped.
    held_out: the share of keys, 0 to 1, that goes to held_out.tfrecord.
  """
  folder.mkdir()
  with (
    tf.io.TFRecordWriter(str(folder / KEPT)) as training,
    tf.io.TFRecordWriter(str(folder / HELD_OUT)) as validation,
  ):
    for document in documents:
      if document.text.strip():
        key = hashlib.sha256(document.key.encode()).digest()
        number = int.from_bytes(key[:8], 'big')  # uniform below 2**64
        writer = validation if number < held_out * 2**64 else training
        writer.write(document.text.encode())


def convert_files(
  split: str,
  train: Sequence[pathlib.Path],
  validation: Sequence[pathlib.Path],
  held_out: float,
  documents: Callable[[pathlib.Path], Iterable[str]],
  entry: str,
) -> list[pathlib.Path]:
  """Returns the TFRecord files of a split, one for each of the user's files.

  Args:
    split: 'train' or 'validation'.
    train: the files for training.
    validation: the files for validation; if there is no such file, a share of
      the training documents is held out. A document's hash decides, so the
      choice is stable and copies of a document are never on both sides.
    held_out: that share.
    documents: yields the documents of a file.
    entry: folder of the cache, one for each way to make documents.
  """
  paths, share, part = train, 0.0, KEPT
  if validation and split == 'validation':
    paths = validation
  elif not validation:
    share = held_out
    part = KEPT if split == 'train' else HELD_OUT

  return [
    convert_file(path, documents, entry, held_out=share) / part
    for path in paths
  ]


def convert_file(
  path: pathlib.Path,
  documents: Callable[[pathlib.Path], Iterable[str]],
  entry: str,
  *,
  held_out: float = 0.0,
) -> pathlib.Path:
  """Returns the folder with one file's documents, see `write_documents`.

  Args:
    path: the user's file.
    documents: yields its documents.
    entry: folder of the cache, one for each way to make documents.
    held_out: the share of documents that is held out.
  """
  name = cache.fingerprint([path], held_out=held_out)
  return cache.build(
    f'{entry}/{path.name}-{name}',
    lambda folder: write_documents(
      folder, (Document(text, text) for text in documents(path)), held_out
    ),
  )


def check_share(value, binding: str):
  """Raises UserError if a held-out share is not between 0 and 1."""
  if not isinstance(value, float) or not 0 < value < 1:
    raise UserError(f'{binding} = {value!r}: expected a number from 0 to 1')


def matching_files(
  patterns: str | Sequence[str], what: str
) -> list[pathlib.Path]:
  """Returns the files that match one or more glob patterns, sorted.

  Args:
    patterns: shell patterns, with ** for any number of folders, and ~.
    what: the binding of the patterns, for the error.

  Raises:
    UserError: a pattern matches no file.
  """
  matches = set()
  for pattern in [patterns] if isinstance(patterns, str) else patterns:
    expanded = str(pathlib.Path(pattern).expanduser())
    files = [
      path
      for path in map(pathlib.Path, glob.glob(expanded, recursive=True))
      if path.is_file()
    ]
    if not files:
      raise UserError(f'{what}: no file matches {pattern!r}')
    matches.update(path.absolute() for path in files)
  return sorted(matches)


def line_texts(path: pathlib.Path) -> Iterable[str]:
  """Yields the lines of a text file, without their ends."""
  return (line.text for line in text_reader.lines(path))
