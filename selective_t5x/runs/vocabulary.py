"""Stores the vocabulary of a run beside its checkpoints and compares it later.

Without this, a model would silently restore with another vocabulary of the same
size. vocabulary.json has the fingerprint. vocabulary.model is the SentencePiece
model, if the vocabulary is one, and vocabulary/tokenizer.json the tokenizer of
Hugging Face:

    --gin.vocabularies.Choice.path="'results/mine/vocabulary.model'"
"""

import pathlib
from typing import Any

import seqio

from selective_t5x.errors import UserError
from selective_t5x.runs.files import read_json, write_json
from selective_t5x.tasks import tokenizer_json, vocabularies

RECORD_FILE = 'vocabulary.json'
MODEL_FILE = 'vocabulary.model'
TOKENIZER_FOLDER = 'vocabulary'


def save(folder: str, vocabulary: seqio.Vocabulary) -> list[pathlib.Path]:
  """Writes the missing vocabulary files of a run; returns the new ones.

  Raises:
    UserError: the folder holds a run with another vocabulary.
  """
  check(folder, vocabulary)
  record = pathlib.Path(folder) / RECORD_FILE
  if record.exists():
    return []
  new = [record]
  resolved = vocabulary
  if isinstance(vocabulary, vocabularies.TaskVocabulary):
    resolved = vocabulary.resolve()
  if isinstance(resolved, seqio.SentencePieceVocabulary):
    model = record.with_name(MODEL_FILE)
    source = pathlib.Path(resolved.sentencepiece_model_file)
    model.parent.mkdir(parents=True, exist_ok=True)
    model.write_bytes(source.read_bytes())
    new.append(model)
  if isinstance(resolved, tokenizer_json.TokenizerVocabulary):
    new += _copy_tokenizer(pathlib.Path(resolved.path), record.parent)
  # The record comes last, so that it only exists with the model.
  write_json(record, {'fingerprint': vocabularies.fingerprint(vocabulary)})
  return new


def check(folder: str, vocabulary: seqio.Vocabulary) -> None:
  """Compares a vocabulary with that of the run in a folder.

  A folder without a record, such as one from T5X itself, passes.

  Raises:
    UserError: they differ.
  """
  record = pathlib.Path(folder) / RECORD_FILE
  if not record.exists():
    return
  recorded = read_json(record)['fingerprint']
  present = vocabularies.fingerprint(vocabulary)
  if recorded != present:
    raise UserError(
      f'{folder} was trained with another vocabulary ({recorded}) than this '
      f'configuration has ({present}): load its config.gin, or give '
      f'--gin.vocabularies.Choice.path="\'{_file(record.parent)}\'"'
    )


def _file(folder: pathlib.Path) -> pathlib.Path:
  """Returns what Choice.path must be to have a run's vocabulary."""
  tokenizer = folder / TOKENIZER_FOLDER / tokenizer_json.FILE
  return tokenizer if tokenizer.is_file() else folder / MODEL_FILE


def _copy_tokenizer(
  path: pathlib.Path, folder: pathlib.Path
) -> list[pathlib.Path]:
  """Copies a tokenizer.json, and the file that names its end of sequence."""
  files = []
  (folder / TOKENIZER_FOLDER).mkdir(parents=True, exist_ok=True)
  for source, name in (
    (path, tokenizer_json.FILE),
    (path.with_name(tokenizer_json.CONFIG_FILE), tokenizer_json.CONFIG_FILE),
  ):
    if source.is_file():
      files.append(folder / TOKENIZER_FOLDER / name)
      files[-1].write_bytes(source.read_bytes())
  return files


def run_folder(restore_cfg: Any) -> str | None:
  """Returns the folder of the run that a RestoreCheckpointConfig names."""
  if restore_cfg is None or not isinstance(restore_cfg.path, str):
    return None
  path = pathlib.Path(restore_cfg.path)
  return str(path.parent if restore_cfg.mode == 'specific' else path)
