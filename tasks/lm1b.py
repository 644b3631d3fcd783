"""lm1b_lm: the One Billion Word benchmark; a document is a sentence.

It is read from the files of the official archive if <DATA_DIR>/lm1b exists, at
any depth (see `data_dir`):

    training-monolingual.tokenized.shuffled/news.en-*-of-00100
    heldout-monolingual.tokenized.shuffled/news.en.heldout-*-of-00050

and otherwise from TensorFlow Datasets. The splits are those of TensorFlow
Datasets: train, and test with everything that is held out.
Source of the benchmark: arXiv 1312.3005.
"""

import pathlib

import seqio

from selective_t5x.errors import UserError
from selective_t5x.tasks import (
  data_dir,
  language_modeling,
  sources,
  tfds_source,
)

_PATTERNS = {
  'train': 'training-monolingual.tokenized.shuffled/news.en-*-of-00100',
  'test': 'heldout-monolingual.tokenized.shuffled/news.en.heldout-*-of-00050',
}


def _convert(folder: pathlib.Path, split: str) -> list[pathlib.Path]:
  paths = sorted(folder.rglob(_PATTERNS[split]))
  if not paths:
    raise UserError(f'{folder}: no file {_PATTERNS[split]} in it')
  return [
    sources.convert_file(path, sources.line_texts, 'lm1b') / sources.KEPT
    for path in paths
  ]


_TFDS = tfds_source.TfdsSource(
  'lm1b:1.1.0',
  splits=tuple(_PATTERNS),
  otherwise='unpack the official archive in <DATA_DIR>/lm1b',
)
_LOCAL = sources.DocumentSource(
  lambda: data_dir.folder('lm1b'), _convert, splits=tuple(_PATTERNS)
)


class _Source(seqio.DataSource):
  """Reads the local files if there are any, else TensorFlow Datasets."""

  @property
  def _chosen(self) -> seqio.DataSource:
    return _TFDS if data_dir.folder('lm1b') is None else _LOCAL

  def settings(self):
    """Returns the settings that determine the documents."""
    return self._chosen.settings()

  def data_identity(self, split):
    """Returns the source that is read."""
    del split
    return {'source': self._chosen}

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """Is False for both sources."""
    return False

  def list_shards(self, split):
    """Returns the files."""
    return self._chosen.list_shards(split)

  def num_input_examples(self, split):
    """Returns the number of documents where it is known."""
    return self._chosen.num_input_examples(split)

  def get_dataset(
    self, split='train', shuffle=True, seed=None, shard_info=None
  ):
    """Returns the documents, {'text': ...}."""
    return self._chosen.get_dataset(split, shuffle, seed, shard_info)


SOURCE = _Source(splits=tuple(_PATTERNS))
language_modeling.register('lm1b_lm', SOURCE)
