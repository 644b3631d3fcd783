"""Span corruption, T5's pre-training objective, for any source of documents.

Each span of the text is replaced by a sentinel; the targets are the sentinels,
each with its span. Source: Raffel et al., arXiv 1910.10683, section 3.1.4 and
3.3.4. The t5 package's own preprocessors make the examples, as in its task
c4_v220_span_corruption:

    text     Thank you for inviting me to your party last week .
    inputs   Thank you <0> me to your party <1> week . EOS
    targets  <0> for inviting <1> last EOS

Tasks: wikipedia_sample_span_corruption, c4_json_span_corruption,
c4_en_span_corruption, text_files_span_corruption, table_files_span_corruption.
"""

import dataclasses
import numbers
from collections.abc import Mapping

import gin
import numpy as np
import seqio
import tensorflow as tf
from t5.data import preprocessors

from selective_t5x.errors import UserError
from selective_t5x.tasks import objectives

# The last ids of the vocabulary, the last one first; T5's number.
NUM_SENTINELS = 100


@gin.configurable(module='selective_t5x.tasks.span_corruption')
@dataclasses.dataclass(frozen=True)
class Corruption:
  """Amount of corruption; bound in gin, read when a data set is built.

      from selective_t5x.tasks import span_corruption
      span_corruption.Corruption.mean_noise_span_length = 10.0

  The defaults are T5's: 512 tokens of inputs hold 568 of text, and their
  targets take 114.

  Attributes:
    noise_density: share of the tokens that are replaced, between 0 and 1.
    mean_noise_span_length: mean number of tokens in a span, 1 or more.
  """

  noise_density: float = 0.15
  mean_noise_span_length: float = 3.0

  def __post_init__(self):
    """Refuses numbers that corrupt nothing or everything."""
    for field, expected, fits in (
      ('noise_density', 'between 0 and 1', lambda x: 0 < x < 1),
      ('mean_noise_span_length', 'of 1 or more', lambda x: x >= 1),
    ):
      value = getattr(self, field)
      if not isinstance(value, numbers.Real) or not fits(value):
        raise UserError(
          f'span_corruption.Corruption.{field} = {value!r}: expected a number '
          f'{expected}'
        )

  def text_length(self, inputs_length: int) -> int:
    """Returns the number of tokens of text that fill inputs of this length."""
    return preprocessors.random_spans_helper(
      inputs_length=inputs_length,
      noise_density=self.noise_density,
      mean_noise_span_length=self.mean_noise_span_length,
      extra_tokens_per_span_inputs=1,
      extra_tokens_per_span_targets=1,
    )[0]

  def counts(self, text_length: np.ndarray) -> tuple[np.ndarray, ...]:
    """Counts kept and replaced tokens of pieces of text, as t5's mask does.

    Args:
      text_length: i64[n], tokens of each piece, 1 or more.

    Returns:
      i64[n] each: tokens kept, tokens replaced, spans.
    """
    length = np.maximum(text_length, 2)
    replaced = np.round(np.float32(length) * np.float32(self.noise_density))
    replaced = np.clip(replaced.astype(np.int64), 1, length - 1)
    spans = np.round(
      np.float32(replaced) / np.float32(self.mean_noise_span_length)
    )
    return length - replaced, replaced, np.maximum(spans.astype(np.int64), 1)


def register(name: str, source: seqio.DataSource) -> seqio.Task:
  """Adds a span corruption task with its own vocabulary and 100 sentinels.

      source = seqio.TfdsDataSource('wiki40b/en:1.3.0')
      span_corruption.register('wiki40b_span_corruption', source)

  Args:
    name: of the task.
    source: gives {'text': document}, with at least a training split.
  """
  return objectives.register(name, source, corrupt, extra_ids=NUM_SENTINELS)


def corrupt(
  dataset: tf.data.Dataset,
  sequence_length: Mapping[str, int],
  output_features: Mapping[str, seqio.Feature],
) -> tf.data.Dataset:
  """Corrupts spans; all text is used, and all pieces but the last are full.

  As in T5, up to 128 documents are joined and cut into pieces of equal length,
  so one example may hold the end of a document and the start of the next.

  Args:
    dataset: documents, {'targets': i32[n]}.
    sequence_length: tokens of 'inputs' and 'targets', including EOS.
    output_features: the features, with a vocabulary that has sentinels.

  Returns:
    A dataset of {'inputs': i32[n], 'targets': i32[m]}, without EOS.

  Raises:
    UserError: the lengths would cut an example.
  """
  corruption = Corruption()
  check_lengths(corruption, sequence_length)
  return preprocessors.span_corruption(
    dataset,
    sequence_length,
    output_features,
    mean_noise_span_length=corruption.mean_noise_span_length,
    noise_density=corruption.noise_density,
  )


def check_lengths(corruption: Corruption, sequence_length: Mapping[str, int]):
  """Raises UserError if a corrupted piece of any length would not fit."""
  lengths = objectives.lengths(sequence_length, 'span corruption')
  inputs = lengths['inputs']
  # Pieces are full, except the last ones, which have any length.
  pieces = np.arange(1, max(corruption.text_length(inputs), 1) + 1)
  nonnoise, replaced, spans = corruption.counts(pieces)
  if np.any(spans > nonnoise):
    raise UserError(
      f'{corruption}: more spans than tokens to lie between them; lower '
      'noise_density or raise mean_noise_span_length'
    )
  if max(spans) > NUM_SENTINELS:
    raise UserError(
      f"TASK_FEATURE_LENGTHS['inputs'] is {inputs}: its {max(spans)} spans are "
      f'more than the {NUM_SENTINELS} sentinels; shorten it or raise '
      'span_corruption.Corruption.mean_noise_span_length'
    )
  needed_lengths = {
    'inputs': int(max(nonnoise + spans)) + 1,
    'targets': int(max(replaced + spans)) + 1,
  }
  for feature, length in needed_lengths.items():
    if lengths[feature] < length:
      raise UserError(
        f"TASK_FEATURE_LENGTHS['{feature}'] is {lengths[feature]}: inputs of "
        f'{inputs} with {corruption} need {needed_lengths}'
      )


for _name, _source in objectives.corpora().items():
  register(f'{_name}_span_corruption', _source)
