"""Language modelling: documents to chunks of tokens, and how to add a task.

The only feature is `targets`: seqio's converter makes the decoder's inputs of
it by shifting in a 0 at the start of every segment, and packs short segments
into one row. The tasks themselves add no start of sequence.
"""

import seqio
import tensorflow as tf

from selective_t5x.errors import UserError
from selective_t5x.tasks import vocabularies

# Chunks in the shuffle buffer, which is a part of every saved iterator: 4 MB
# at length 256. The default of 1,000 would hold some 30 Wikipedia articles.
_SHUFFLE_BUFFER = 4096


def register(name: str, source: seqio.DataSource) -> seqio.Task:
  """Adds a language-modelling task with its own vocabulary.

      source = seqio.TfdsDataSource('c4/en:3.1.0')
      language_modeling.register('c4_en_lm', source)

  Args:
    name: of the task.
    source: gives {'text': document}, with a training split at least.
  """
  return seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[tokenize, chunk],
    output_features={
      'targets': seqio.Feature(vocabularies.TaskVocabulary(name))
    },
    shuffle_buffer_size=_SHUFFLE_BUFFER,
  )


def tokenize(dataset, output_features):
  """Turns {'text': document} into {'targets': i32[n]}, ending in EOS.

  One function with AUTOTUNE in place of seqio's, which tokenizes 256 documents
  at a time and has to save all of them with the iterator.
  """
  vocabulary = output_features['targets'].vocabulary

  def tokens(example):
    ids = vocabulary.encode_tf(example['text'])
    return {'targets': tf.concat([ids, [vocabulary.eos_id]], axis=0)}

  return dataset.map(tokens, num_parallel_calls=tf.data.AUTOTUNE)


def chunk(dataset, sequence_length):
  """Cuts each document into chunks of the feature length; keeps every token.

  Each chunk becomes a segment of its own, and the last may be short. EOS ends
  the document, so only the last chunk has it.
  """
  if not sequence_length:
    return dataset
  length = sequence_length.get('targets')
  if not isinstance(length, int) or length < 1:
    raise UserError(
      f'TASK_FEATURE_LENGTHS is {sequence_length}: language modelling needs '
      "{'targets': the context length}"
    )

  def chunks(example):
    tokens = example['targets']
    starts = tf.data.Dataset.range(0, tf.size(tokens, tf.int64), length)
    return starts.map(lambda i: {'targets': tokens[i : i + length]})

  return dataset.flat_map(chunks)
