"""Rows for a trained model to read, and what it masks in them."""

import math
from collections.abc import Sequence

import numpy as np

from selective_t5x.errors import UserError
from selective_t5x.report import masking
from selective_t5x.runs.restore import Batch, Trained


def batches(run: Trained, texts: Sequence[str], examples: int) -> list[Batch]:
  """Returns texts as batches of one row, or rows of the evaluation split.

  Args:
    run: a restored model.
    texts: for a decoder to read; none: rows of the split.
    examples: number of these rows.

  Raises:
    UserError: a text is empty or too long, the model reads none, or the split
      has fewer rows.
  """
  if texts:
    return [_of_text(run, text) for text in texts]
  size = run.dataset_cfg.batch_size
  of_split = run.batches(math.ceil(examples / size))
  remaining = examples - size * (len(of_split) - 1)
  of_split[-1] = {name: x[:remaining] for name, x in of_split[-1].items()}
  return of_split


def rows(run: Trained, read: Sequence[Batch]) -> list[masking.Masked]:
  """Returns what the model masks in each row of some batches."""
  vocabulary = run.model.output_vocabulary
  return [
    row
    for batch in read
    for row in masking.capture(run.model, run.params, batch, vocabulary)
  ]


def _of_text(run: Trained, text: str) -> Batch:
  """Returns a batch of one row: the start token and a text."""
  if hasattr(run.model.module, 'encode'):
    raise UserError(
      '--text: an encoder-decoder reads two texts; leave it out to see rows of '
      'the evaluation split'
    )
  tokens = run.model.output_vocabulary.encode(text)
  if not tokens:
    raise UserError('--text is empty')
  if len(tokens) >= run.length:
    raise UserError(
      f'--text: {len(tokens)} tokens, the model reads {run.length - 1} at most'
    )
  inputs = np.array([[0, *tokens]], np.int32)
  ones = np.ones_like(inputs)
  return {
    'decoder_input_tokens': inputs,
    # Nothing is predicted; targets only mark that there is no padding.
    'decoder_target_tokens': ones,
    'decoder_loss_weights': ones,
    'decoder_positions': np.arange(inputs.size, dtype=np.int32)[None],
    'decoder_segment_ids': ones,
  }
