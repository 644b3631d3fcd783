"""The SentencePiece model of a Hugging Face folder, and of a run.

The pieces of a T5's model are followed by sentinels, <extra_id_99> down to
<extra_id_0>, which seqio and transformers add in the same order.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import sentencepiece

from selective_t5x.errors import UserError
from selective_t5x.runs import files as run_files

# Names in Hugging Face folders and in a run's.
PIECES_FILE = 'spiece.model'
TOKENIZER_FILE = 'tokenizer.json'
TOKENIZER_CONFIG_FILE = 'tokenizer_config.json'
RUN_RECORD_FILE = 'vocabulary.json'
RUN_MODEL_FILE = 'vocabulary.model'

# A value of --vocabulary: there is none.
NONE = 'none'
_SENTINEL = '<extra_id_0>'
_DEFAULT_SENTINELS = 100


@dataclasses.dataclass(frozen=True)
class Pieces:
  """A SentencePiece model and its sentinels.

  Attributes:
    path: the file.
    extra_ids: sentinels that are added to its pieces.
    size: ids, sentinels included.
    eos_id: the end of a sequence.
  """

  path: pathlib.Path
  extra_ids: int
  size: int
  eos_id: int

  def write_record(self, folder: pathlib.Path) -> None:
    """Writes the files that a run keeps of its vocabulary."""
    # It takes seconds.
    from selective_t5x.cli import libraries

    libraries.import_tensorflow()
    import seqio

    from selective_t5x.runs import vocabulary as run_vocabulary

    run_vocabulary.save(
      str(folder),
      seqio.SentencePieceVocabulary(str(self.path), self.extra_ids),
    )


def of_folder(folder: pathlib.Path, flag: str | None) -> Pieces | None:
  """Returns the vocabulary of a Hugging Face folder.

  Args:
    folder: the folder.
    flag: --vocabulary: a SentencePiece model to use in place of the folder's,
      'none' for no vocabulary, or None.

  Raises:
    UserError: there is no SentencePiece model, or it is no model.
  """
  if flag == NONE:
    return None
  path = pathlib.Path(flag) if flag else folder / PIECES_FILE
  if not path.is_file():
    other = ''
    if not flag and (folder / TOKENIZER_FILE).is_file():
      other = f', only {TOKENIZER_FILE}'
    raise UserError(
      f'there is no {path}{other}: give --vocabulary=FILE, a SentencePiece '
      f'model, or --vocabulary={NONE} to convert the parameters alone'
    )
  processor = load(path)
  config = folder / TOKENIZER_CONFIG_FILE
  values = run_files.read_json(config) if config.is_file() else {}
  extra_ids = values.get('extra_ids', _DEFAULT_SENTINELS)
  pieces = {processor.id_to_piece(i) for i in range(processor.vocab_size())}
  if {_SENTINEL, f'▁{_SENTINEL}'} & pieces:
    extra_ids = 0  # As in mT5's model.
  return _pieces(path, processor, extra_ids)


def of_run(
  folder: pathlib.Path, flag: str | None, extra_ids: int | None = None
) -> Pieces | None:
  """Returns the vocabulary of a run.

  Args:
    folder: the run's folder.
    flag: as in `of_folder`.
    extra_ids: sentinels; None: as many as the run's record counts.

  Raises:
    UserError: the run has kept no SentencePiece model.
  """
  if flag == NONE:
    return None
  path = pathlib.Path(flag) if flag else folder / RUN_MODEL_FILE
  if not path.is_file():
    raise UserError(
      f'there is no {path}: give --vocabulary=FILE, the SentencePiece model '
      f'that the model was trained with, or --vocabulary={NONE} to export no '
      'tokenizer'
    )
  processor = load(path)
  if extra_ids is None:
    extra_ids = _recorded_size(folder, processor) - processor.vocab_size()
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


def _recorded_size(folder, processor) -> int:
  """Returns the number of ids in the run's record, 'N pieces, HASH'."""
  record = folder / RUN_RECORD_FILE
  values: Mapping[str, Any] = (
    run_files.read_json(record) if record.is_file() else {}
  )
  words = str(values.get('fingerprint', '')).split()
  if len(words) > 1 and words[1].startswith('piece') and words[0].isdigit():
    return int(words[0])
  return processor.vocab_size() + _DEFAULT_SENTINELS
