"""UL2's mixture of denoisers, for any source of documents.

Source: Tay et al., arXiv 2205.05131, section 3.1 and table 1. Every denoiser
replaces spans of the text by sentinels, as span corruption does, and writes the
mode it belongs to before the inputs:

    R  regular     short spans, little text: T5's objective
    S  sequential  one span, the end of the text: prefix language modelling
    X  extreme     long spans or much text

    inputs   [X] Thank you <0> last week . EOS
    targets  <0> for inviting me to your party EOS

Mixtures: wikipedia_sample_ul2, c4_json_ul2, c4_en_ul2, text_files_ul2,
table_files_ul2, each of seven tasks such as wikipedia_sample_ul2_r3. They have
the vocabulary of the corpus's span corruption.

Differs: a span may lie anywhere; T5's mask ends with one, so that a text of one
span, as those of 64 tokens often are, would always lose its end. The rates are
ours: all seven denoisers are drawn equally often.
"""

import dataclasses
import functools
from collections.abc import Mapping

import gin
import numpy as np
import seqio
import tensorflow as tf
from t5.data import preprocessors

from selective_t5x.errors import UserError, is_number
from selective_t5x.tasks import objectives, span_corruption, vocabularies

# As the t5 package joins them for span corruption.
_JOINED_DOCUMENTS = 128


@dataclasses.dataclass(frozen=True)
class Denoiser:
  """What one of the denoisers replaces.

  Attributes:
    mode: 'r', 's' or 'x'.
    noise_density: the mean share of the tokens that is replaced.
    mean_noise_span_length: mean number of tokens in a span; None: one span, the
      end of the text.
  """

  mode: str
  noise_density: float
  mean_noise_span_length: float | None = None

  def most(self, text_length: np.ndarray) -> tuple[np.ndarray, ...]:
    """Counts the tokens of pieces of text.

    Args:
      text_length: i64[n], tokens of each piece, 1 or more.

    Returns:
      i64[n] each: the most tokens that remain, the most replaced ones, spans.
    """
    if self.mean_noise_span_length is not None:
      return span_corruption.Corruption(
        self.noise_density, self.mean_noise_span_length
      ).counts(text_length)
    length = np.maximum(text_length, 2)
    mean = np.maximum(np.round(length * self.noise_density).astype(np.int64), 1)
    # The length of the end is uniform from 1 on.
    return length - 1, np.minimum(2 * mean - 1, length - 1), np.ones_like(mean)

  def mask(
    self, length: tf.Tensor, noise_density: float, seeds, *, longest: int
  ) -> tf.Tensor:
    """Returns the tokens that are replaced, as t5's `denoise` calls for them.

    Args:
      length: i32, tokens of the text, at most `longest`.
      noise_density: not read: `most` has it.
      seeds: two of i32[2].
      longest: bound of the length.

    Returns:
      bool[length].
    """
    del noise_density
    remaining, replaced, spans = (
      tf.constant(np.insert(counts, 0, 0), tf.int32)[length]
      for counts in self.most(np.arange(1, longest + 1))
    )
    if self.mean_noise_span_length is None:
      replaced = tf.random.stateless_uniform(
        [], seeds[0], minval=1, maxval=replaced + 1, dtype=tf.int32
      )
      return tf.range(length) >= tf.maximum(length, 2) - replaced
    # What remains and what is replaced alternate. The last part, of what
    # remains, may be empty.
    remaining_lengths = _random_parts(remaining + 1, spans + 1, seeds[1])
    remaining_lengths -= tf.one_hot(spans, spans + 1, dtype=tf.int32)
    replaced_lengths = tf.pad(
      _random_parts(replaced, spans, seeds[0]), [[0, 1]]
    )
    lengths = tf.reshape(
      tf.stack([remaining_lengths, replaced_lengths], 1), [-1]
    )
    is_noise = tf.range(tf.size(lengths)) % 2 == 1
    return tf.repeat(is_noise, lengths)[:length]


DENOISERS = {
  'r3': Denoiser('r', 0.15, 3.0),
  'r8': Denoiser('r', 0.15, 8.0),
  's': Denoiser('s', 0.25),
  'x3': Denoiser('x', 0.5, 3.0),
  'x8': Denoiser('x', 0.5, 8.0),
  'x64_sparse': Denoiser('x', 0.15, 64.0),
  'x64': Denoiser('x', 0.5, 64.0),
}


@gin.configurable(module='selective_t5x.tasks.ul2')
@dataclasses.dataclass(frozen=True)
class Modes:
  """The texts that stand before the inputs; bound in gin.

      from selective_t5x.tasks import ul2
      ul2.Modes.r = '[NLU]'

  The published UL2 has [NLU], [S2S] and [NLG]. They are text: the vocabulary
  has no ids for them alone.

  Attributes:
    r: of the regular denoisers; '' for none.
    s: of the sequential one.
    x: of the extreme ones.
  """

  r: str = '[R]'
  s: str = '[S]'
  x: str = '[X]'

  def __post_init__(self):
    """Refuses what is no text."""
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if not isinstance(value, str):
        raise UserError(f'ul2.Modes.{field.name} = {value!r}: expected text')


@gin.configurable(module='selective_t5x.tasks.ul2')
@dataclasses.dataclass(frozen=True)
class Rates:
  """How often each denoiser is drawn, relative to the others; bound in gin.

      from selective_t5x.tasks import ul2
      ul2.Rates.s = 6.0  # as often as all others together

  Attributes:
    r: of each regular denoiser.
    s: of the sequential one.
    x: of each extreme one.
  """

  r: float = 1.0
  s: float = 1.0
  x: float = 1.0

  def __post_init__(self):
    """Refuses negative rates, and none."""
    rates = dataclasses.asdict(self)
    for name, value in rates.items():
      if not is_number(value) or value < 0:
        raise UserError(
          f'ul2.Rates.{name} = {value!r}: expected a number of 0 or more'
        )
    if not any(rates.values()):
      raise UserError('ul2.Rates: all are 0; expected one that is more')


def register(
  name: str, source: seqio.DataSource, vocabulary: seqio.Vocabulary
) -> seqio.Mixture:
  """Adds a task for each denoiser, and the mixture of them.

      source = seqio.TfdsDataSource('wiki40b/en:1.3.0')
      task = span_corruption.register('wiki40b_span_corruption', source)
      vocabulary = task.output_features['targets'].vocabulary
      ul2.register('wiki40b_ul2', source, vocabulary)

  Args:
    name: of the mixture; a task is called <name>_<denoiser>.
    source: gives {'text': document}, with at least a training split.
    vocabulary: has span_corruption.NUM_SENTINELS sentinels.
  """
  rates = []
  for denoiser_name, denoiser in DENOISERS.items():
    task = objectives.register(
      f'{name}_{denoiser_name}',
      source,
      functools.partial(denoise, denoiser=denoiser),
      vocabulary=vocabulary,
    )
    rates.append((task.name, functools.partial(_rate, mode=denoiser.mode)))
  return seqio.MixtureRegistry.add(name, rates)


def denoise(
  dataset: tf.data.Dataset,
  sequence_length: Mapping[str, int],
  output_features: Mapping[str, seqio.Feature],
  denoiser: Denoiser,
) -> tf.data.Dataset:
  """Makes the examples of one denoiser; all text is used.

  As in T5, up to 128 documents are joined and cut into pieces of equal length,
  the longest whose inputs and targets fit.

  Args:
    dataset: documents, {'targets': i32[n]}.
    sequence_length: tokens of 'inputs' and 'targets', including EOS.
    output_features: the features, with a vocabulary that has sentinels.
    denoiser: what is replaced.

  Returns:
    A dataset of {'inputs': i32[n], 'targets': i32[m]}, without EOS.

  Raises:
    UserError: if no piece of two tokens would fit.
  """
  mode = getattr(Modes(), denoiser.mode)
  prefix = output_features['inputs'].vocabulary.encode(mode) if mode else []
  longest = text_length(denoiser, sequence_length, len(prefix))
  dataset = preprocessors.reduce_concat_tokens(
    dataset, batch_size=_JOINED_DOCUMENTS
  )
  dataset = preprocessors.split_tokens(dataset, max_tokens_per_segment=longest)
  dataset = preprocessors.denoise(
    dataset,
    output_features,
    noise_density=denoiser.noise_density,
    noise_mask_fn=functools.partial(denoiser.mask, longest=longest),
    inputs_fn=preprocessors.noise_span_to_unique_sentinel,
    targets_fn=_replaced_spans,
  )
  prefix = tf.constant(prefix, tf.int32)
  return dataset.map(
    lambda example: (
      example | {'inputs': tf.concat([prefix, example['inputs']], 0)}
    ),
    num_parallel_calls=tf.data.AUTOTUNE,
  )


def text_length(
  denoiser: Denoiser, sequence_length: Mapping[str, int], prefix: int
) -> int:
  """Returns the number of tokens of text in the longest piece that fits.

  Args:
    denoiser: what is replaced.
    sequence_length: tokens of 'inputs' and 'targets', including EOS.
    prefix: tokens of the mode.

  Raises:
    UserError: if no piece of two tokens would fit.
  """
  lengths = objectives.lengths(sequence_length, 'a denoiser')
  pieces = np.arange(1, sum(lengths.values()) + 1)
  remaining, replaced, spans = denoiser.most(pieces)
  fits = (
    (prefix + remaining + spans + 1 <= lengths['inputs'])
    & (replaced + spans + 1 <= lengths['targets'])
    & (spans <= np.minimum(remaining, span_corruption.NUM_SENTINELS))
  )
  # A last piece may have any length below.
  longest = int(np.argmin(np.append(fits, False)))
  if longest < 2:
    raise UserError(
      f'TASK_FEATURE_LENGTHS is {dict(sequence_length)}: with {prefix} tokens '
      f'of its mode, {denoiser} has no room for two tokens of text'
    )
  return longest


def _replaced_spans(tokens, noise_mask, vocabulary, seeds) -> tf.Tensor:
  """Returns each replaced span after its sentinel, as t5's `denoise` asks.

  t5's function puts a further sentinel for text after the last span.
  """
  targets = preprocessors.nonnoise_span_to_unique_sentinel(
    tokens, noise_mask, vocabulary, seeds
  )
  ends_in_text = tf.reduce_any(noise_mask) & ~noise_mask[-1]
  return targets[: tf.size(targets) - tf.cast(ends_in_text, tf.int32)]


def _random_parts(total: tf.Tensor, count: tf.Tensor, seed) -> tf.Tensor:
  """Returns i32[count], random lengths of 1 or more with a given sum."""
  places = seqio.stateless_shuffle(tf.range(1, total), seed)
  cuts = tf.sort(places[: count - 1])
  ends = tf.concat([cuts, total[None]], 0)
  return ends - tf.concat([[0], cuts], 0)


def _rate(task: seqio.Task, mode: str) -> float:
  """Returns the rate of the tasks of a mode, as bound now."""
  del task
  return float(getattr(Rates(), mode))


for _name, _source in objectives.corpora().items():
  register(
    f'{_name}_ul2',
    _source,
    vocabularies.TaskVocabulary(
      f'{_name}_span_corruption', span_corruption.NUM_SENTINELS
    ),
  )
