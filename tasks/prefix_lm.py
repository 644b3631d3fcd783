"""Prefix language modelling: the start of a text as inputs, the rest to learn.

Source: Raffel et al., arXiv 1910.10683, section 3.2.1. The t5 package's own
preprocessors make the examples, as in its task c4_v220_prefix_lm. A piece of a
document is cut at a random position:

    text     Thank you for inviting me to your party last week .
    inputs   Thank you for EOS
    targets  inviting me to your party last week . EOS

Tasks: wikipedia_sample_prefix_lm, c4_json_prefix_lm, c4_en_prefix_lm,
text_files_prefix_lm, table_files_prefix_lm. With
models.LanguageModel.inputs_bidirectional_attention the inputs of a baseline see
each other; a selective model reads them causally.
"""

from collections.abc import Mapping

import seqio
import tensorflow as tf
from t5.data import preprocessors

from selective_t5x.errors import UserError
from selective_t5x.tasks import objectives


def register(name: str, source: seqio.DataSource) -> seqio.Task:
  """Adds a prefix language-modelling task with its own vocabulary.

      source = seqio.TfdsDataSource('wiki40b/en:1.3.0')
      prefix_lm.register('wiki40b_prefix_lm', source)

  Args:
    name: of the task.
    source: gives {'text': document}, with at least a training split.
  """
  return objectives.register(name, source, split_at_random)


def split_at_random(
  dataset: tf.data.Dataset,
  sequence_length: Mapping[str, int],
  output_features: Mapping[str, seqio.Feature],
) -> tf.data.Dataset:
  """Cuts documents into pieces and each piece in two; all text is used.

  A piece has one token less than the inputs' length, for the end of sequence.
  The position of the cut is uniform.

  Args:
    dataset: documents, {'targets': i32[n]}.
    sequence_length: tokens of 'inputs' and 'targets', including EOS.
    output_features: the features.

  Returns:
    A dataset of {'inputs': i32[n], 'targets': i32[m]}, without EOS.

  Raises:
    UserError: if the targets are too short for the longest rest.
  """
  lengths = objectives.lengths(sequence_length, 'prefix language modelling')
  # All but the first token of a piece; or the one token of a last piece.
  longest_rest = max(lengths['inputs'] - 1, 2)
  if lengths['targets'] < longest_rest:
    raise UserError(
      f"TASK_FEATURE_LENGTHS['targets'] is {lengths['targets']}: inputs of "
      f'{lengths["inputs"]} leave up to {longest_rest} tokens to the targets'
    )
  return preprocessors.prefix_lm(dataset, sequence_length, output_features)


for _name, _source in objectives.corpora().items():
  register(f'{_name}_prefix_lm', _source)
