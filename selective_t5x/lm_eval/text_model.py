"""A restored model that answers the requests of lm-evaluation-harness."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging

from selective_t5x.errors import UserError, is_integer
from selective_t5x.lm_eval import requests
from selective_t5x.lm_eval.requests import Row, Tokens
from selective_t5x.lm_eval.scorer import Scorer
from selective_t5x.runs import restore

Progress = Callable[[int], None]


class TextModel:
  """Scores and continues texts; the harness's adapter adds its classes."""

  def __init__(self, scorer: Scorer, input_vocabulary, output_vocabulary):
    """Stores the arguments.

    Args:
      scorer: the model.
      input_vocabulary: a seqio vocabulary of the encoder's inputs.
      output_vocabulary: that of the decoder.
    """
    self.scorer = scorer
    self._inputs, self._outputs = input_vocabulary, output_vocabulary
    self._cut = 0

  def log_likelihoods(
    self, pairs: Sequence[tuple[str, str]], progress: Progress
  ) -> list[tuple[float, bool]]:
    """Scores continuations of contexts.

    A context too long loses its beginning. An encoder's inputs end in the end
    token; a continuation has none.

    Args:
      pairs: (context, continuation) of each; the context may be ''.
      progress: called with numbers of rows that were computed.

    Returns:
      (log-likelihood of the continuation in nats, whether greedy decoding gives
      it) of each; (0, True) for an empty one.

    Raises:
      UserError: a continuation is longer than the decoder's sequences.
    """
    rows = [self._row(*pair) for pair in pairs]
    self._warn_of_cuts()
    scores = iter(self.scorer.score([r for r in rows if r.scored], progress))
    return [next(scores) if row.scored else (0.0, True) for row in rows]

  def rolling_log_likelihoods(
    self, texts: Sequence[str], progress: Progress
  ) -> list[float]:
    """Scores whole documents in windows, see `requests.windows`.

    An encoder gets the end token alone, as in the harness.

    Returns:
      the log-likelihood of each document in nats; 0 for an empty one.
    """
    inputs = self._encoder_inputs(()) if self.scorer.has_encoder else ()
    rows = [
      [
        Row(inputs, *window)
        for window in requests.windows(
          self._outputs.encode(text) if text else (), self.scorer.length
        )
      ]
      for text in texts
    ]
    scores = iter(self.scorer.score([r for of in rows for r in of], progress))
    return [sum(next(scores)[0] for _ in of_text) for of_text in rows]

  def continuations(
    self, prompts: Sequence[tuple[str, Sequence[str], int]], progress: Progress
  ) -> list[str]:
    """Continues texts greedily.

    Args:
      prompts: (context, stop texts, the most tokens to add) of each.
      progress: called with numbers of rows that were computed.

    Returns:
      each continuation, up to its first stop text or the end token.

    Raises:
      UserError: a continuation may be longer than the decoder's sequences.
    """
    rows = [self._prompt(context, most) for context, _, most in prompts]
    self._warn_of_cuts()
    return [
      requests.cut_at(self._text(tokens, new), stops)
      for (_, stops, _), (tokens, _), new in zip(
        prompts, rows, self.scorer.generate(rows, progress), strict=True
      )
    ]

  def _row(self, context: str, continuation: str) -> Row:
    length, has_encoder = self.scorer.length, self.scorer.has_encoder
    if has_encoder:
      before, _ = requests.split_pair(
        self._inputs.encode, context, '', together=False
      )
      _, scored = requests.split_pair(
        self._outputs.encode, context, continuation, together=False
      )
    else:
      before, scored = requests.split_pair(
        self._outputs.encode, context, continuation, together=True
      )
    if len(scored) > length:
      raise UserError(
        f'a continuation of {len(scored)} tokens, {continuation[:40]!r}…: the '
        f'sequences of the model have at most {length}'
      )
    if has_encoder:
      return Row(self._encoder_inputs(before), (), scored)
    return Row((), self._end_of(before, length - len(scored)), scored)

  def _prompt(self, context: str, most: int) -> tuple[Tokens, int]:
    room = self.scorer.length - (not self.scorer.has_encoder)
    if not is_integer(most) or not 0 < most <= room:
      raise UserError(
        f'max_gen_toks = {most!r}: the sequences of the model have '
        f'{self.scorer.length} tokens: expected 1 to {room}'
      )
    vocabulary = self._inputs if self.scorer.has_encoder else self._outputs
    tokens = tuple(vocabulary.encode(context)) if context else ()
    if self.scorer.has_encoder:
      return self._encoder_inputs(tokens), most
    return self._end_of(tokens, self.scorer.length - most), most

  def _encoder_inputs(self, tokens: Tokens) -> Tokens:
    return (
      *self._end_of(tokens, self.scorer.inputs_length - 1),
      self._inputs.eos_id,
    )

  def _end_of(self, tokens: Tokens, room: int) -> Tokens:
    self._cut += len(tokens) > room
    return tokens[max(0, len(tokens) - room) :]

  def _warn_of_cuts(self) -> None:
    if self._cut:
      logging.warning(
        '%d contexts are longer than the model takes: they lose their '
        'beginnings',
        self._cut,
      )
      self._cut = 0

  def _text(self, before: Tokens, new: Tokens) -> str:
    """Returns the text of new tokens, with the space that they begin with."""
    whole = self._outputs.decode([*before, *new])
    known = self._outputs.decode(list(before))
    if not self.scorer.has_encoder and before and whole.startswith(known):
      return whole[len(known) :]
    return self._outputs.decode(list(new))


@contextlib.contextmanager
def restored(
  checkpoint: str,
  *,
  gin_files: Sequence[str] = (),
  gin_bindings: Sequence[str] = (),
  rows: int = 8,
):
  """Yields the TextModel of a checkpoint; see runs.restore.restored.

  Args:
    checkpoint: a checkpoint_N, or a run's folder for its latest checkpoint.
    gin_files: files after the run's configuration, such as
      gin/pruning/selective.gin.
    gin_bindings: 'KEY = VALUE' texts, applied last.
    rows: see Scorer.

  Raises:
    UserError: there is no such checkpoint, or a setting is wrong.
  """
  if not is_integer(rows) or rows < 1:
    raise UserError(f'rows = {rows!r}: expected a whole number of 1 or more')
  with restore.restored(
    checkpoint, gin_files=gin_files, gin_bindings=gin_bindings
  ) as run:
    yield of_run(run, rows)


def of_run(run: restore.Trained, rows: int) -> TextModel:
  """Returns the TextModel of a restored model."""
  from t5x import models

  inputs_length = 0
  if isinstance(run.model, models.EncoderDecoderModel):
    inputs_length = _length(run.dataset_cfg.task_feature_lengths, 'inputs')
  scorer = Scorer(
    run.model,
    run.params,
    length=run.length,
    inputs_length=inputs_length,
    rows=rows,
  )
  return TextModel(
    scorer, run.model.input_vocabulary, run.model.output_vocabulary
  )


def _length(lengths: Any, feature: str) -> int:
  if feature not in lengths:
    raise UserError(
      f'TASK_FEATURE_LENGTHS is {dict(lengths)}: the model needs a length of '
      f'{feature!r}'
    )
  return lengths[feature]
