"""The vocabulary of a Hugging Face folder, and of a run.

It is a SentencePiece model or, where there is none, a tokenizer.json. The
pieces of a T5's model are followed by sentinels, <extra_id_99> down to
<extra_id_0>, which seqio and transformers add in the same order.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import sentencepiece

from selective_t5x.cli import libraries
from selective_t5x.errors import UserError, is_integer
from selective_t5x.runs import files as run_files

# Names in Hugging Face folders and in a run's.
PIECES_FILE = 'spiece.model'
TOKENIZER_FILE = 'tokenizer.json'
TOKENIZER_CONFIG_FILE = 'tokenizer_config.json'
RUN_RECORD_FILE = 'vocabulary.json'
RUN_MODEL_FILE = 'vocabulary.model'
RUN_TOKENIZER_FILE = 'vocabulary/tokenizer.json'

# A value of --vocabulary: there is none.
NONE = 'none'
_SENTINEL = '<extra_id_0>'
DEFAULT_SENTINELS = 100


@dataclasses.dataclass(frozen=True)
class Pieces:
  """A file with the pieces of a vocabulary, and its sentinels.

  Attributes:
    path: a SentencePiece model, or a tokenizer.json.
    extra_ids: sentinels: those added to a SentencePiece model's pieces, or all
      that a tokenizer.json has or gets.
    size: ids, sentinels included.
    eos_id: the end of a sequence.
  """

  path: pathlib.Path
  extra_ids: int
  size: int
  eos_id: int

  @property
  def is_tokenizer(self) -> bool:
    """Whether the file is a tokenizer.json."""
    return self.path.suffix == '.json'

  def vocabulary(self) -> Any:
    """Returns the vocabulary of seqio's; it imports TensorFlow."""
    libraries.import_tensorflow()
    if self.is_tokenizer:
      from selective_t5x.tasks import tokenizer_json

      return tokenizer_json.TokenizerVocabulary(str(self.path), self.extra_ids)
    import seqio

    return seqio.SentencePieceVocabulary(str(self.path), self.extra_ids)

  def write_record(self, folder: pathlib.Path) -> None:
    """Writes the files that a run keeps of its vocabulary."""
    vocabulary = self.vocabulary()
    from selective_t5x.runs import vocabulary as run_vocabulary

    run_vocabulary.save(str(folder), vocabulary)

  def inside(self, folder: pathlib.Path) -> 'Pieces':
    """Returns these pieces, with the file that a run in a folder keeps."""
    file = RUN_TOKENIZER_FILE if self.is_tokenizer else RUN_MODEL_FILE
    return dataclasses.replace(self, path=folder / file)


def of_folder(
  folder: pathlib.Path, flag: str | None, sentinels: int = DEFAULT_SENTINELS
) -> Pieces | None:
  """Returns the vocabulary of a Hugging Face folder.

  Args:
    folder: the folder.
    sentinels: those that follow the pieces where the folder does not say it.
    flag: --vocabulary: a file to use in place of the folder's, 'none' for no
      vocabulary, or None.

  Raises:
    UserError: there is no such file, or it is no vocabulary.
  """
  if flag == NONE:
    return None
  path = _file(flag, folder, (PIECES_FILE, TOKENIZER_FILE))
  if path is None:
    raise UserError(
      f'{folder} has neither {PIECES_FILE} nor {TOKENIZER_FILE}: give '
      f'--vocabulary=FILE, or --vocabulary={NONE} to convert the parameters '
      'alone'
    )
  if path.suffix == '.json':
    return _tokenizer(path, None)
  processor = load(path)
  config = folder / TOKENIZER_CONFIG_FILE
  values = run_files.read_json(config) if config.is_file() else {}
  if not isinstance(values, dict):
    raise UserError(f'{config}: expected a JSON object')
  extra_ids = values.get('extra_ids', sentinels)
  if not is_integer(extra_ids) or extra_ids < 0:
    raise UserError(
      f'{config}: extra_ids = {extra_ids!r}: expected 0 sentinels or more'
    )
  pieces = {processor.id_to_piece(i) for i in range(processor.vocab_size())}
  if {_SENTINEL, f'▁{_SENTINEL}'} & pieces:
    extra_ids = 0  # As in mT5's model.
  return _pieces(path, processor, extra_ids)


def of_run(
  folder: pathlib.Path,
  flag: str | None,
  extra_ids: int | None = None,
  sentinels: int = DEFAULT_SENTINELS,
) -> Pieces | None:
  """Returns the vocabulary of a run.

  Args:
    folder: the run's folder.
    flag: as in `of_folder`.
    extra_ids: sentinels; None: as many as the run's record counts.
    sentinels: as many where there is no record.

  Raises:
    UserError: the run has no such file, or it is no vocabulary.
  """
  if flag == NONE:
    return None
  path = _file(flag, folder, (RUN_MODEL_FILE, RUN_TOKENIZER_FILE))
  if path is None:
    raise UserError(
      f'{folder} has no {RUN_MODEL_FILE}: give --vocabulary=FILE, which the '
      f'model was trained with, or --vocabulary={NONE} to export no tokenizer'
    )
  if path.suffix == '.json':
    return _tokenizer(path, _recorded_size(folder))
  processor = load(path)
  if extra_ids is None:
    size = _recorded_size(folder)
    extra_ids = sentinels if size is None else size - processor.vocab_size()
  return _pieces(path, processor, extra_ids)


def load(path: pathlib.Path) -> sentencepiece.SentencePieceProcessor:
  """Reads a SentencePiece model.

  Raises:
    UserError: it is none, or its padding is not id 0.
  """
  processor = sentencepiece.SentencePieceProcessor()
  try:
    processor.LoadFromSerializedProto(path.read_bytes())
  except (RuntimeError, OSError) as error:
    raise UserError(f'{path} is not a SentencePiece model') from error
  if processor.pad_id() != 0 or processor.eos_id() < 1:
    raise UserError(
      f'{path} has padding id {processor.pad_id()} and end-of-sequence id '
      f'{processor.eos_id()}: seqio needs padding 0 and an end of sequence'
    )
  return processor


def check_fits(
  pieces: Pieces, vocab_size: int, eos_token_id: int | None, source: Any
) -> None:
  """Checks a vocabulary against the parameters.

  Raises:
    UserError: it has more ids than the embedding has rows, or another end of a
      sequence.
  """
  if pieces.size > vocab_size:
    raise UserError(
      f'{pieces.path} has {pieces.size} ids with its {pieces.extra_ids} '
      f'sentinels, and the embedding of {source} {vocab_size} rows: it is '
      'the vocabulary of another model'
    )
  if eos_token_id not in (None, pieces.eos_id):
    raise UserError(
      f'{pieces.path} ends a sequence with id {pieces.eos_id}, {source} with '
      f'{eos_token_id}: it is the vocabulary of another model'
    )


def _pieces(path, processor, extra_ids) -> Pieces:
  size = processor.vocab_size() + extra_ids
  return Pieces(path, extra_ids, size, processor.eos_id())


def _tokenizer(path: pathlib.Path, size: int | None) -> Pieces:
  """Returns the pieces of a tokenizer.json.

  Args:
    path: the file.
    size: number of its ids with sentinels; None: it has those it needs.

  Raises:
    UserError: it cannot be a vocabulary of seqio's.
  """
  libraries.import_tensorflow()
  from selective_t5x.tasks import tokenizer_json

  vocabulary = tokenizer_json.TokenizerVocabulary(str(path))
  extra_ids = (size or vocabulary.vocab_size) - vocabulary.vocab_size
  extra_ids = extra_ids or tokenizer_json.sentinel_count(vocabulary.tokenizer)
  size = size or vocabulary.vocab_size
  return Pieces(path, extra_ids, size, vocabulary.eos_id)


def _file(
  flag: str | None, folder: pathlib.Path, names: Sequence[str]
) -> pathlib.Path | None:
  """Returns the file of --vocabulary, or the first that a folder has.

  Raises:
    UserError: the file of --vocabulary is missing.
  """
  paths = [pathlib.Path(flag)] if flag else [folder / name for name in names]
  for path in paths:
    if path.is_file():
      return path
  if flag:
    raise UserError(f'--vocabulary={flag}: there is no such file')
  return None


def _recorded_size(folder: pathlib.Path) -> int | None:
  """Returns the ids in a run's record, 'N pieces, HASH'; None without one."""
  record = folder / RUN_RECORD_FILE
  if not record.is_file():
    return None
  words = str(run_files.read_json(record).get('fingerprint', '')).split()
  is_known = len(words) > 1 and words[1] in ('pieces,', 'tokens,')
  return int(words[0]) if is_known and words[0].isdigit() else None
