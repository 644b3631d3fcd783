"""A seqio source of TensorFlow Datasets with a clear error for missing data.

Without it, data that is neither prepared nor reachable gives a KeyError for an
empty list of splits, or an attempt to download terabytes.
"""

from collections.abc import Sequence

import seqio
import tensorflow as tf

from selective_t5x.errors import UserError, did_you_mean


class TfdsSource(seqio.TfdsDataSource):
  """Documents of a prepared TensorFlow dataset; nothing is read before use."""

  def __init__(self, tfds_name: str, splits: Sequence[str], otherwise: str):
    """Stores the arguments.

    Args:
      tfds_name: name with version, for instance 'c4/en:3.1.0'.
      splits: the dataset's splits; naming them keeps registration offline.
      otherwise: advice for users without TensorFlow Datasets, for the error.
    """
    self._otherwise = otherwise
    super().__init__(tfds_name, splits=splits)

  def settings(self) -> tuple[str, str | None]:
    """Returns what determines the documents: name and folder."""
    return self.tfds_dataset.name, self.tfds_dataset.data_dir

  def list_shards(self, split: str) -> Sequence[str]:
    """Returns the split's files."""
    self._check(split)
    return super().list_shards(split)

  def num_input_examples(self, split: str) -> int | None:
    """Returns the number of documents."""
    self._check(split)
    return super().num_input_examples(split)

  def get_dataset(
    self, split='train', shuffle=True, seed=None, shard_info=None
  ) -> tf.data.Dataset:
    """Returns the documents, {'text': ...} and the dataset's other features."""
    self._check(split)
    try:
      return super().get_dataset(split, shuffle, seed, shard_info)
    except Exception as error:  # downloads, Beam, files: all mean no data
      raise self._not_there(str(error)) from error

  def _check(self, split: str):
    """Raises UserError if the split does not exist or cannot be read."""
    if split not in self.splits:
      raise UserError(
        f'no split {split!r} in {self.tfds_dataset.name}: there is '
        f'{", ".join(self.splits)}{did_you_mean(split, self.splits)}'
      )
    try:
      prepared = self.tfds_dataset.info.splits
    except Exception as error:
      raise self._not_there(str(error)) from error
    if split not in prepared:
      raise self._not_there(f'no split {split!r} is prepared')

  def _not_there(self, reason: str) -> UserError:
    name = self.tfds_dataset.name
    folder = self.tfds_dataset.data_dir or '~/tensorflow_datasets'
    command = name.split(':')[0]
    return UserError(
      f'TensorFlow Datasets has no {name} in {folder} ({reason}): prepare it '
      f'with "tfds build {command}", name the folder where it is with '
      f'--tfds_data_dir, or {self._otherwise}'
    )
