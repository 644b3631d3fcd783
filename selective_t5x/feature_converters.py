"""seqio feature converters: from task features to a decoder's row."""

from collections.abc import Mapping

import seqio
import tensorflow as tf


class SharedRowFeatureConverter(seqio.PrefixLMFeatureConverter):
  """Inputs and targets share one row, however they divide it.

  seqio's own converter gives each feature a place of its own length, so a row
  as long as the model can read leaves a long choice no more room beside a short
  question. Here the row is as long as the longer of the two lengths; the task
  must see to it that both together fit (`questions.keep_the_end`).

      TASK_FEATURE_LENGTHS = {'inputs': %MAX_LENGTH, 'targets': %MAX_LENGTH}
  """

  def _convert_features(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    return super()._convert_features(ds, _shared(task_feature_lengths))

  def get_model_feature_lengths(
    self, task_feature_lengths: Mapping[str, int]
  ) -> Mapping[str, int]:
    """Returns the row's length for every model feature."""
    return super().get_model_feature_lengths(_shared(task_feature_lengths))


def _shared(task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
  # seqio adds the two up.
  return {'inputs': 0, 'targets': max(task_feature_lengths.values())}
