"""Language-modelling tasks: they cut documents into chunks of tokens.

The model's only feature is `targets`: seqio's converter makes the decoder's
inputs from it by shifting in a 0 at the start of every segment, and packs short
segments into one row. The tasks themselves add no start of sequence. The
evaluation also reads the number of bytes of a chunk's text (`perplexity`),
which no model sees.
"""

import seqio
import tensorflow as tf

from selective_t5x.errors import UserError, is_integer
from selective_t5x.tasks import perplexity, vocabularies

# Chunks in the shuffle buffer, 4 MB at length 256. The default of 1,000 would
# hold some 30 Wikipedia articles.
SHUFFLE_BUFFER = 4096


def register(name: str, source: seqio.DataSource) -> seqio.Task:
  """Adds a language-modelling task with its own vocabulary.

      source = seqio.TfdsDataSource('wiki40b/en:1.3.0')
      language_modeling.register('wiki40b_lm', source)

  Args:
    name: of the task.
    source: gives {'text': document}, with at least a training split.
  """
  cached = [seqio.CacheDatasetPlaceholder()] if source.caching_permitted else []
  return seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[tokenize, *cached, chunk],
    output_features={
      'targets': seqio.Feature(vocabularies.TaskVocabulary(name))
    },
    metric_objs=[perplexity.Perplexity()],
    shuffle_buffer_size=SHUFFLE_BUFFER,
  )


def tokenize(dataset, output_features, add_eos=True):
  """Turns {'text': document} into {'targets': i32[n]}; add_eos appends EOS.

  `source_bytes`, i32[], is the length of the text in UTF-8.

  seqio's own function tokenizes 256 documents at a time and so is slow to give
  the first one; this one uses AUTOTUNE.
  """
  vocabulary = output_features['targets'].vocabulary
  # Read here: an error of the vocabulary inside a map would be unreadable.
  eos_id = vocabulary.eos_id

  def tokens(example):
    ids = vocabulary.encode_tf(example['text'])
    if add_eos:
      ids = tf.concat([ids, [eos_id]], axis=0)
    return {
      'targets': ids,
      perplexity.BYTES_FEATURE: tf.strings.length(example['text'], 'BYTE'),
    }

  return dataset.map(tokens, num_parallel_calls=tf.data.AUTOTUNE)


def chunk(dataset, sequence_length):
  """Cuts each document into chunks of the feature length; keeps every token.

  Each chunk becomes a segment, and the last one may be short. EOS ends the
  document, so only the last chunk has it. The document's bytes are distributed
  in proportion to tokens, in whole numbers that add up to their total.
  """
  if not sequence_length:
    return dataset
  length = sequence_length.get('targets')
  if not is_integer(length) or length < 1:
    raise UserError(
      f'TASK_FEATURE_LENGTHS is {sequence_length}: language modelling needs '
      "{'targets': the context length}"
    )

  def chunks(example):
    tokens = example['targets']
    count = tf.size(tokens, tf.int64)
    size = tf.cast(example[perplexity.BYTES_FEATURE], tf.int64)

    def cut(start):
      end = tf.minimum(start + length, count)
      return {
        'targets': tokens[start:end],
        perplexity.BYTES_FEATURE: size * end // count - size * start // count,
      }

    return tf.data.Dataset.range(0, count, length).map(cut)

  return dataset.flat_map(chunks)
