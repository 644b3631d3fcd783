"""seqio feature converters, which turn task features into a decoder's row."""

from collections.abc import Mapping

import seqio
import tensorflow as tf


class SharedRowFeatureConverter(seqio.PrefixLMFeatureConverter):
  """Puts inputs and targets in one row, without a fixed share for each.

  seqio's own converter reserves a fixed length for each feature, so in a row of
  the model's length a short question leaves no more room to a long choice. Here
  the row is as long as the longer of the two lengths; the task must ensure that
  both together fit (`questions.keep_the_end`).

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
  # seqio adds up the two lengths.
  return {'inputs': 0, 'targets': max(task_feature_lengths.values())}
