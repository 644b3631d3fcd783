"""Perplexity and bits per byte of a language-modelling task's whole split.

seqio's Evaluator computes them from the model's scores of every chunk of every
document (gin/runs/eval.gin).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import numpy as np
import seqio

from selective_t5x.tasks import metrics

# A task feature: the number of bytes of the targets' text in UTF-8.
BYTES_FEATURE = 'source_bytes'


@flax.struct.dataclass
class Perplexity(seqio.metrics.Metric):
  """A score metric of seqio: pass `Perplexity()` in a task's metric_objs.

  loss_per_token: -log-likelihood / target tokens, in nats.
  perplexity: e to the power of loss_per_token.
  bits_per_byte: -log-likelihood / ln 2 / bytes of UTF-8 of the documents, if
    the examples have them (`BYTES_FEATURE`). It does not depend on how a
    vocabulary cuts the text, so models of different vocabularies compare.

  The end of sequence that closes a document is a target like any other: it
  counts as a token and adds to all three, but it has no bytes. So bits per byte
  include the cost of predicting the end, which weighs more in short documents.

  Attributes:
    model_output_type: the log-likelihood of each example's targets.
    log_likelihood: the sum over examples, in nats.
    tokens: number of target tokens.
    num_bytes: their bytes, or None if an example lacks them.
  """

  model_output_type: seqio.metrics.ModelOutputType = (
    seqio.metrics.ModelOutputType.SCORE
  )
  log_likelihood: float = 0.0
  tokens: int = 0
  num_bytes: int | None = 0

  @classmethod
  def empty(cls) -> 'Perplexity':
    """Returns the metric of no examples."""
    return cls()

  @classmethod
  def from_model_output(
    cls,
    inputs: Sequence[Mapping[str, Any]],
    model_output: metrics.Scores,
    features: Mapping[str, seqio.Feature],
    target_field_name: str = 'targets',
    mask: np.ndarray | None = None,
    indices_2d: np.ndarray | None = None,
  ) -> 'Perplexity':
    """Sums over examples.

    Args:
      inputs: n examples, the targets i32[<= N] not padded.
      model_output: f32[n], or a pair of it and further arrays.
      features: unused, seqio's.
      target_field_name: the feature that is scored.
      mask: bool[n], which examples count; None: all.
      indices_2d: unused, seqio's.
    """
    del features, indices_2d
    scores = metrics.log_likelihoods(model_output)
    counts = np.ones(len(scores), bool) if mask is None else np.array(mask) > 0
    examples = [
      example for example, used in zip(inputs, counts, strict=True) if used
    ]
    has_bytes = all(BYTES_FEATURE in example for example in examples)
    return cls(
      log_likelihood=float(scores[counts].sum()),
      tokens=sum(len(example[target_field_name]) for example in examples),
      num_bytes=sum(int(example[BYTES_FEATURE]) for example in examples)
      if has_bytes
      else None,
    )

  def merge(self, other: 'Perplexity') -> 'Perplexity':
    """Returns the metric of both sets of examples."""
    has_bytes = self.num_bytes is not None and other.num_bytes is not None
    return self.replace(
      log_likelihood=self.log_likelihood + other.log_likelihood,
      tokens=self.tokens + other.tokens,
      num_bytes=self.num_bytes + other.num_bytes if has_bytes else None,
    )

  def compute(self) -> dict[str, float]:
    """Returns the values; see the class.

    Without any target token loss and perplexity are undefined, NaN.
    """
    if not self.tokens:
      return {'loss_per_token': math.nan, 'perplexity': math.nan}
    loss = -self.log_likelihood / self.tokens
    values = {'loss_per_token': loss, 'perplexity': float(np.exp(loss))}
    if self.num_bytes:
      values['bits_per_byte'] = (
        -self.log_likelihood / math.log(2) / self.num_bytes
      )
    return values
