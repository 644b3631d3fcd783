"""Tasks whose inputs and targets an objective makes from plain documents."""

import functools
from collections.abc import Callable, Mapping

import seqio
import tensorflow as tf

from selective_t5x.errors import UserError, is_integer
from selective_t5x.tasks import (
  c4_json,
  c4_tfds,
  language_modeling,
  perplexity,
  table_files,
  text_files,
  vocabularies,
  wikipedia_sample,
)

# The t5 package's objectives take one random piece of this many tokens from a
# longer document. Here the document is cut first, and all its pieces are kept.
_LONGEST_DOCUMENT = 65536


def corpora() -> dict[str, seqio.DataSource]:
  """Returns {name: source} of the sources with a task of every objective."""
  return {
    'wikipedia_sample': wikipedia_sample.SOURCE,
    'c4_json': c4_json.SOURCE,
    'c4_en': c4_tfds.SOURCE,
    'text_files': text_files.SOURCE,
    'table_files': table_files.TEXTS,
  }


def register(
  name: str,
  source: seqio.DataSource,
  objective: Callable[..., tf.data.Dataset],
  *,
  extra_ids: int = 0,
  vocabulary: seqio.Vocabulary | None = None,
) -> seqio.Task:
  """Adds a task whose inputs and targets end in EOS.

  Args:
    name: of the task.
    source: gives {'text': document}, with at least a training split.
    objective: a seqio preprocessor that makes inputs and targets, without EOS,
      from {'targets': i32[n]}, documents without EOS.
    extra_ids: sentinels of the task's own vocabulary, its last ids.
    vocabulary: another one in its place.
  """
  if vocabulary is None:
    vocabulary = vocabularies.TaskVocabulary(name, extra_ids)
  feature = seqio.Feature(vocabulary)
  cached = [seqio.CacheDatasetPlaceholder()] if source.caching_permitted else []
  return seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[
      functools.partial(language_modeling.tokenize, add_eos=False),
      *cached,
      _cut_long_documents,
      objective,
      seqio.preprocessors.append_eos_after_trim,
    ],
    output_features={'inputs': feature, 'targets': feature},
    metric_objs=[perplexity.Perplexity()],
    shuffle_buffer_size=language_modeling.SHUFFLE_BUFFER,
  )


def _cut_long_documents(dataset: tf.data.Dataset) -> tf.data.Dataset:
  return language_modeling.chunk(dataset, {'targets': _LONGEST_DOCUMENT})


def lengths(
  sequence_length: Mapping[str, int] | None, what: str
) -> dict[str, int]:
  """Returns the lengths of inputs and targets.

  Raises:
    UserError: a length is missing or less than 2.
  """
  feature_lengths = {
    feature: (sequence_length or {}).get(feature)
    for feature in ('inputs', 'targets')
  }
  if not all(is_integer(n) and n > 1 for n in feature_lengths.values()):
    raise UserError(
      f'TASK_FEATURE_LENGTHS is {sequence_length}: {what} needs the lengths of '
      "'inputs' and 'targets', whole numbers of 2 or more"
    )
  return feature_lengths
