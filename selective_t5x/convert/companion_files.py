"""The small files of a Hugging Face folder beside its parameters.

An import keeps them, without the SentencePiece model, so that an export of the
same model writes them again.
"""

import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from selective_t5x.convert import config_json, vocabulary
from selective_t5x.errors import UserError
from selective_t5x.runs.files import read_json

# The folder of an import that they are kept in.
FOLDER = 'hugging_face'
_TOKENIZER_FILES = (
  vocabulary.TOKENIZER_FILE,
  vocabulary.TOKENIZER_CONFIG_FILE,
  'special_tokens_map.json',
  'added_tokens.json',
)
_FILES = (config_json.FILE, config_json.GENERATION_FILE, *_TOKENIZER_FILES)


def keep(source: pathlib.Path, folder: pathlib.Path) -> None:
  """Copies the files of a Hugging Face folder into that of an import."""
  (folder / FOLDER).mkdir()
  _copy(_FILES, source, folder / FOLDER)


class Companions:
  """The files that an export takes over.

  Attributes:
    values: config.json; {} without files.
  """

  def __init__(self, run: pathlib.Path, flag: str | None):
    """Finds them.

    Args:
      run: the folder of the checkpoint.
      flag: --like: a Hugging Face folder; None: what an import kept, if any.

    Raises:
      UserError: there is no config.json in the folder of the flag.
    """
    self._folder = pathlib.Path(flag) if flag else run / FOLDER
    file = self._folder / config_json.FILE
    if flag and not file.is_file():
      raise UserError(f'--like={flag}: there is no {config_json.FILE} in it')
    self.values: Mapping[str, Any] = read_json(file) if file.is_file() else {}

  def write_tokenizer(
    self, pieces: vocabulary.Pieces, folder: pathlib.Path
  ) -> bool:
    """Writes the tokenizer's files; returns whether there are any.

    Raises:
      UserError: they belong to another vocabulary.
    """
    if not any((self._folder / name).is_file() for name in _TOKENIZER_FILES):
      return False
    name = vocabulary.PIECES_FILE
    if pieces.is_tokenizer:
      name = vocabulary.TOKENIZER_FILE
    own = self._folder / name
    if own.is_file() and own.read_bytes() != pieces.path.read_bytes():
      raise UserError(
        f'{own} is another vocabulary than {pieces.path}, which the parameters '
        'were trained with'
      )
    _copy(_TOKENIZER_FILES, self._folder, folder)
    shutil.copyfile(pieces.path, folder / name)
    return True

  def write_generation_config(self, folder: pathlib.Path) -> None:
    """Copies the settings of generate(), if there are any."""
    _copy((config_json.GENERATION_FILE,), self._folder, folder)


def _copy(names, source, folder) -> None:
  for name in names:
    if (source / name).is_file():
      shutil.copyfile(source / name, folder / name)
