"""The vocabulary of a run: kept beside its checkpoints, compared with later.

Ids mean nothing without it, and a model of another vocabulary of the same size
would restore without a complaint. vocabulary.json has its fingerprint, and
vocabulary.model is the SentencePiece model itself, where it is one:

    --gin.vocabularies.Choice.path="'results/mine/vocabulary.model'"
"""

import pathlib
from typing import Any

import seqio

from selective_t5x.errors import UserError
from selective_t5x.runs.files import read_json, write_json
from selective_t5x.tasks import vocabularies

RECORD_FILE = 'vocabulary.json'
MODEL_FILE = 'vocabulary.model'


def save(folder: str, vocabulary: seqio.Vocabulary) -> list[pathlib.Path]:
  """Writes the files of a run, if they are not there; returns the new ones.

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
  # Last: what is recorded is whole.
  write_json(record, {'fingerprint': vocabularies.fingerprint(vocabulary)})
  return new


def check(folder: str, vocabulary: seqio.Vocabulary) -> None:
  """Compares a vocabulary with that of the run in a folder.

  A folder without a record, one of T5X's own for instance, is not refused.

  Raises:
    UserError: they differ.
  """
  record = pathlib.Path(folder) / RECORD_FILE
  if not record.exists():
    return
  trained = read_json(record)['fingerprint']
  given = vocabularies.fingerprint(vocabulary)
  if trained != given:
    raise UserError(
      f'{folder} was trained with another vocabulary ({trained}) than this '
      f'configuration has ({given}): load its config.gin, or give '
      f'--gin.vocabularies.Choice.path="\'{record.with_name(MODEL_FILE)}\'"'
    )


def run_folder(restore_cfg: Any) -> str | None:
  """Returns the folder of the run that a RestoreCheckpointConfig names."""
  if restore_cfg is None or not isinstance(restore_cfg.path, str):
    return None
  path = pathlib.Path(restore_cfg.path)
  return str(path.parent if restore_cfg.mode == 'specific' else path)
