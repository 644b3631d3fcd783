"""c4_json_lm: C4 from local files in the format of its public JSON release.

The files keep their names, c4-train.00000-of-01024.json.gz and
c4-validation.00000-of-00008.json.gz; a few shards are enough to train on.
Each line is an object with "text", "timestamp" and "url".
"""

import dataclasses
import pathlib
from collections.abc import Iterator

import gin

from selective_t5x.errors import UserError
from selective_t5x.tasks import (
  data_dir,
  language_modeling,
  sources,
  text_reader,
)


@gin.configurable(module='selective_t5x.tasks.c4_json')
@dataclasses.dataclass(frozen=True)
class Files:
  """Location of the shards; bound in gin.

      from selective_t5x.tasks import c4_json
      c4_json.Files.folder = '/data/c4'

  Attributes:
    folder: holds the shards; None: <DATA_DIR>/c4 (see `data_dir`).
    held_out: share of the training documents for validation, if the folder has
      no validation shard.
  """

  folder: str | None = None
  held_out: float = 0.01

  def __post_init__(self):
    """Refuses values of another kind."""
    if self.folder is not None and not isinstance(self.folder, str):
      raise UserError(f'c4_json.Files.folder = {self.folder!r}: expected text')
    sources.check_share(self.held_out, 'c4_json.Files.held_out')


# `text_reader` refuses those that it cannot unpack.
_ENDS = ('', '.gz', '.bz2', '.xz', '.zst')


def _settings() -> Files:
  """Returns the bindings, with the default folder resolved."""
  files = Files()
  folder = data_dir.folder('c4') if files.folder is None else None
  return dataclasses.replace(files, folder=str(folder)) if folder else files


def _convert(files: Files, split: str) -> list[pathlib.Path]:
  if files.folder is None:
    raise UserError(
      'c4_json_lm: bind c4_json.Files.folder to the folder of your C4 shards, '
      'or put them in <DATA_DIR>/c4'
    )
  folder = pathlib.Path(files.folder).expanduser()
  if not folder.is_dir():
    raise UserError(f'c4_json.Files.folder: there is no folder {folder}')
  train, validation = (_shards(folder, split) for split in sources.SPLITS)
  if not train and not (split == 'validation' and validation):
    raise UserError(
      f'c4_json.Files.folder: no file in {folder} is named as C4 names them, '
      f'c4-{split}.00000-of-01024.json.gz'
    )
  return sources.convert_files(
    split, train, validation, files.held_out, _documents, 'c4_json'
  )


def _shards(folder: pathlib.Path, split: str) -> list[pathlib.Path]:
  """Returns the shards of a split, in their order.

  Raises:
    UserError: a shard exists twice, packed and unpacked.
  """
  shards = {}
  for path in sorted(folder.glob(f'c4-{split}.*.json*')):
    name, _, end = path.name.rpartition('.json')
    if end not in _ENDS:
      continue
    if name in shards:
      raise UserError(f'{shards[name]} and {path}: expected one of them')
    shards[name] = path
  return list(shards.values())


def _documents(path: pathlib.Path) -> Iterator[str]:
  for line, record in text_reader.objects(path):
    yield text_reader.text_under('text', record, line)


SOURCE = sources.DocumentSource(_settings, _convert)
language_modeling.register('c4_json_lm', SOURCE)
